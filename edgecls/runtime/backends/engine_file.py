"""What an engine is and what can load it: the TensorRT that is installed, and the record beside the engine's file.

A runtime decides by these whether it may load an engine; `export/engine.py` builds engines and writes the records.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Literal, get_type_hints

from edgecls import __version__
from edgecls.errors import EdgeclsError, MissingExtra, RunError
from edgecls.manifest import Manifest, Precision
from edgecls.records import check_kinds
from edgecls.runtime.backends.batch_profile import BatchProfile

Flavour = Literal["tensorrt", "tensorrt-rtx"]

SCHEMA: Final = 1
ENGINE_SUFFIX: Final = ".engine"

# JetPack and the wheels of TensorRT bring the first; those of TensorRT for RTX the last, some also the second
_MODULES: Final = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


@dataclass(frozen=True)
class TensorRT:
    """The TensorRT that is installed here.

    Attributes:
        module: its Python module.
        version: e.g. `10.3.0`.
    """

    module: Any
    flavour: Flavour
    version: str

    @property
    def is_rtx(self) -> bool:
        return self.flavour == "tensorrt-rtx"

    def __str__(self) -> str:
        return f"TensorRT{' for RTX' if self.is_rtx else ''} {self.version}"


def find_tensorrt() -> TensorRT:
    """The first TensorRT that can build.

    Raises:
        MissingExtra: none is installed.
    """
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except Exception:  # wheels without their libraries raise classes of many kinds
            continue
        if hasattr(module, "Builder"):  # a package that only depends on the real one has none
            return TensorRT(module, "tensorrt-rtx" if "rtx" in name else "tensorrt", str(module.__version__))
    error = MissingExtra("edgecls engine", "tensorrt-rtx")
    error.args = (
        f"{error}; on a Jetson TensorRT comes with JetPack instead: make the environment with "
        "python3 -m venv --system-site-packages, so that it sees it",
    )
    raise error


def why_no_tensorrt() -> str:
    """Why a TensorRT that is installed cannot be loaded; empty where none is installed."""
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                return str(error)
        except Exception as error:  # as above
            return " ".join(str(error).split()) or type(error).__name__
    return ""


@functools.cache
def logger_of(trt: Any) -> Any:
    """The logger of this process: keeps errors in `said`, prints nothing.

    One for all builds, since TensorRT ignores a second one as long as anything made with the first is alive.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base is known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # by its name: super() does not start a pybind11 trampoline
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and not is_noise(message):
                self.said.append(" ".join(message.split()))

    return Logger()


def is_noise(line: str) -> bool:
    """Where there is no driver, TensorRT repeats that behind every other error."""
    return "catchCudaError" in line


@dataclass(frozen=True)
class EngineRecord:
    """What an engine is: the JSON beside it, with which a lone engine predicts.

    Attributes:
        flavour, tensorrt: which TensorRT built it, and its version; no other may load it.
        platform: operating system and processor, e.g. `linux-aarch64`.
        gpu: name of the GPU that it was built on; None where it was built for one elsewhere.
        compute_capability: of the GPU that it was built for, major and minor.
        batch, optimization_level, dla_core, hardware_compatible: as in `EngineOptions`.
        onnx_sha256: of the ONNX file that it was built from.
        engine_sha256: of the engine's own bytes.
        manifest: that of the ONNX file: labels, preprocessing, precision.
        created: ISO 8601, UTC.
    """

    flavour: Flavour
    tensorrt: str
    platform: str
    gpu: str | None
    compute_capability: tuple[int, int]
    batch: BatchProfile
    optimization_level: int
    dla_core: int | None
    hardware_compatible: bool
    onnx_sha256: str
    engine_sha256: str
    manifest: Manifest
    edgecls: str = __version__
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    schema: int = SCHEMA

    @property
    def precision(self) -> Precision:
        return self.manifest.precision

    @property
    def runs_on(self) -> str:
        """The GPUs that can load it, in words."""
        major, minor = self.compute_capability
        if self.hardware_compatible:
            return "GPUs of compute capability 8.0 and above"
        if self.flavour == "tensorrt-rtx":
            return f"GPUs of compute capability {major}.{minor}"
        return f"{self.gpu}, compute capability {major}.{minor}"

    @property
    def key(self) -> str:
        """12 hex digits; the same for two engines only if one can stand for the other."""
        decides = (
            self.schema, self.flavour, self.tensorrt, self.platform, self.runs_on, self.precision, str(self.batch),
            self.optimization_level, self.dla_core, self.onnx_sha256,
        )  # fmt: skip
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]

    @property
    def file_name(self) -> str:
        return f"{self.precision}-{self.key}.engine"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, engine: Path) -> EngineRecord:
        """The record beside an engine, read strictly. (Whether the engine fits it is not asked here.)

        Raises:
            RunError: there is none, it is damaged, or of another schema.
        """
        path = sidecar(engine)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema"] != SCHEMA:
                raise RunError(f"schema {values['schema']}, this edgecls ({__version__}) reads {SCHEMA}")
            values["manifest"] = Manifest.from_json(json.dumps(values["manifest"]), str(path))
            values["batch"] = BatchProfile(**values["batch"])
            check_kinds(values, get_type_hints(cls), RunError)
            return cls(**{**values, "compute_capability": tuple(values["compute_capability"])})
        except OSError as error:
            raise RunError(f"{path}: no record beside the engine ({error.strerror}); build it again") from error
        except (ValueError, TypeError, LookupError, AttributeError, EdgeclsError) as error:
            raise RunError(f"{path}: damaged record of an engine ({error}); build it again") from error


def sidecar(engine: Path) -> Path:
    """Where the record of an engine lies."""
    return engine.with_suffix(".json")
