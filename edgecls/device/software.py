"""What this Python can import to run a model with, and whether that finds a GPU."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgecls.cache import cache_folder
from edgecls.errors import MissingExtra
from edgecls.runtime.backends.cuda import Gpu, find_gpu, why_no_gpu
from edgecls.runtime.backends.engine_file import TensorRT, find_tensorrt, why_no_tensorrt
from edgecls.runtime.backends.selection import version_of

_PACKAGES: Final = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings",
    "cuda-python", "pycuda", "numpy", "opencv-python-headless",
)  # fmt: skip


@dataclass(frozen=True)
class Software:
    """What this Python finds.

    Attributes:
        python: its version; machine: as the platform names the processor, e.g. `aarch64`.
        packages: versions by name, of those that matter and are installed.
        providers: of ONNX Runtime; empty where it is not installed or cannot be loaded.
        onnxruntime_problem, openvino_problem: why one that is installed cannot be loaded; empty where it can.
        tensorrt: its module is None.
        tensorrt_problem: why one that is installed cannot be loaded; empty where none is installed, or it can.
        gpu_problem: why no GPU was found; empty where one was.
        free_disk_mb: where engines and bundles are kept.
    """

    python: str
    machine: str
    packages: Mapping[str, str]
    providers: tuple[str, ...]
    onnxruntime_problem: str
    openvino_problem: str
    tensorrt: TensorRT | None
    tensorrt_problem: str
    gpu: Gpu | None
    gpu_problem: str
    free_disk_mb: float | None


def find_software() -> Software:
    """What there is here. Never raises."""
    gpu, tensorrt = find_gpu(), _tensorrt()
    providers, onnxruntime_problem = _onnxruntime()
    return Software(
        python=platform.python_version(),
        machine=platform.machine(),
        packages={name: version for name in _PACKAGES if (version := version_of(name))},
        providers=providers,
        onnxruntime_problem=onnxruntime_problem,
        openvino_problem=_openvino_problem(),
        tensorrt=tensorrt,
        tensorrt_problem="" if tensorrt else why_no_tensorrt(),
        gpu=gpu,
        gpu_problem="" if gpu else why_no_gpu(),
        free_disk_mb=_free_disk_mb(cache_folder()),
    )


def _onnxruntime() -> tuple[tuple[str, ...], str]:
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except Exception as error:  # a broken wheel raises classes of many kinds
        return (), _problem(error, "onnxruntime")
    providers = getattr(onnxruntime, "get_available_providers", None)
    if providers is None:  # what is left of the folder after onnxruntime was removed beside onnxruntime-gpu
        return (), "its folder is there, but not its library"
    try:
        return tuple(providers()), ""
    except Exception as error:
        return (), _problem(error, "")


def _openvino_problem() -> str:
    if not version_of("openvino"):
        return ""
    try:
        importlib.import_module("openvino")
    except Exception as error:
        return _problem(error, "openvino")
    return ""


def _problem(error: Exception, package: str) -> str:
    """Why an import failed; empty where the package is simply not there."""
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return ""
    return " ".join(str(error).split()) or type(error).__name__


def _tensorrt() -> TensorRT | None:
    try:
        return replace(find_tensorrt(), module=None)
    except MissingExtra:
        return None


def _free_disk_mb(folder: Path) -> float | None:
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free / 1e6
    except OSError:
        return None
