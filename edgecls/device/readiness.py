"""Which backends can run here; for each that cannot, the one reason and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgecls.device.software import Software
from edgecls.device.system import System
from edgecls.errors import EdgeclsError, RunError
from edgecls.manifest import Precision
from edgecls.runs import ENGINES, MODEL_FILES, Run
from edgecls.runtime.backends.belonging import another, check_belongs
from edgecls.runtime.backends.cuda import NO_CUDA_BINDING
from edgecls.runtime.backends.engine_file import ENGINE_SUFFIX, EngineRecord
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.runtime.backends.onnx_manifest import manifest_of_file
from edgecls.runtime.backends.tensor_rt import fits

BackendName = Literal["cpu", "openvino", "cuda", "tensorrt"]

_LEAST_TENSORRT: Final = (10, 3)
# What the system's TensorRT belongs to: no other Python can load it
_PYTHON_OF_JETPACK: Final = {"6": "3.10", "7": "3.12"}
# cuda-bindings has no release for CUDA 12.6; cuda-python 12.6 brings the same modules
_PACKAGES_OF_JETPACK: Final = {"6": '"cuda-python==12.6.2.post1" "numpy<2"', "7": '"cuda-python>=13,<14"'}
_RTX: Final = 'pip install "edgecls[tensorrt-rtx]"'


@dataclass(frozen=True)
class Readiness:
    """Whether one backend can run here.

    Attributes:
        name: as `--device` takes it.
        detail: what runs it, where it can; the reason where it cannot.
        cure: a command that mends it; empty where there is nothing to mend or no command does.
    """

    name: BackendName
    can_run: bool
    detail: str
    cure: str = ""


def readiness(system: System, software: Software) -> tuple[Readiness, ...]:
    """The four backends, in the order in which a device prefers them."""
    return (_tensorrt(system, software), _cuda(system, software), _openvino(software), _cpu(software))


def _cpu(software: Software) -> Readiness:
    if software.onnxruntime_problem:
        reason = f"ONNX Runtime is installed and cannot be loaded: {software.onnxruntime_problem}."
        return Readiness("cpu", False, reason, 'pip install --force-reinstall "edgecls[cpu]"')
    if not software.providers:
        return Readiness("cpu", False, "ONNX Runtime is not installed.", 'pip install "edgecls[cpu]"')
    return Readiness("cpu", True, _onnxruntime(software))


def _onnxruntime(software: Software) -> str:
    packages = software.packages
    return f"ONNX Runtime {packages.get('onnxruntime') or packages.get('onnxruntime-gpu') or ''}".rstrip()


def _openvino(software: Software) -> Readiness:
    version = software.packages.get("openvino")
    if version and software.openvino_problem:
        reason = f"OpenVINO is installed and cannot be loaded: {software.openvino_problem}."
        return Readiness("openvino", False, reason, 'pip install --force-reinstall "edgecls[openvino]"')
    if not version and software.machine.lower() not in ("x86_64", "amd64"):
        return Readiness("openvino", False, "OpenVINO is not installed, and not needed on this kind of processor.")
    if not version:
        reason = "OpenVINO is not installed. It is a second engine for CPUs, and not needed."
        return Readiness("openvino", False, reason, 'pip install "edgecls[openvino]"')
    return Readiness("openvino", True, f"OpenVINO {version}")


def _cuda(system: System, software: Software) -> Readiness:
    if not _has_gpu(system, software):
        return Readiness("cuda", False, "There is no NVIDIA GPU.")
    has_cuda = "CUDAExecutionProvider" in software.providers
    if system.is_jetson and not has_cuda:
        return Readiness("cuda", False, "ONNX Runtime from PyPI has no CUDA for a Jetson. Use TensorRT there.")
    if problem := _not_given(system, software) or _no_driver(system, software):
        return Readiness("cuda", False, *problem)
    if not has_cuda:
        reason = "This ONNX Runtime has no CUDA." if software.providers else "ONNX Runtime is not installed."
        first = "pip uninstall -y onnxruntime; " if software.providers else ""
        return Readiness("cuda", False, reason, f'{first}pip install "edgecls[gpu]"')
    # ONNX Runtime finds the GPU without a Python binding
    if software.gpu is None and software.gpu_problem != NO_CUDA_BINDING:
        return Readiness("cuda", False, *_unreachable(system, software))
    return Readiness("cuda", True, f"{_onnxruntime(software)} with CUDA")


def _tensorrt(system: System, software: Software) -> Readiness:
    if not _has_gpu(system, software):
        return Readiness("tensorrt", False, "There is no NVIDIA GPU.")
    problem = (
        _jetpack_too_old(system)
        or _not_given(system, software)
        or _no_driver(system, software)
        or _no_tensorrt(system, software)
        or (None if software.gpu else _unreachable(system, software))
    )
    if problem or not software.gpu:
        return Readiness("tensorrt", False, *(problem or ("",)))
    major, minor = software.gpu.compute_capability
    return Readiness(
        "tensorrt", True, f"{software.tensorrt} on {software.gpu.name} (compute capability {major}.{minor})"
    )


def _has_gpu(system: System, software: Software) -> bool:
    return system.has_nvidia_gpu or software.gpu is not None


def _jetpack_too_old(system: System) -> tuple[str, str] | None:
    if system.is_jetson and system.jetpack in ("4", "5", "6.0"):
        return (
            f"JetPack {system.jetpack} has TensorRT 8. edgecls needs JetPack 6.1 or newer, which exists for boards "
            "with Orin or Thor.",
            "",
        )
    return None


def _not_given(system: System, software: Software) -> tuple[str, str] | None:
    """A container without the GPU, where TensorRT's libraries may be missing too: they come with it."""
    if software.gpu or not system.container or system.gpu_nodes:
        return None
    cures = {"Podman": "podman run --device nvidia.com/gpu=all ...", "Kubernetes": ""}
    flag = "--runtime nvidia" if system.is_jetson else "--gpus all"
    reason = "This container was not given the GPU."
    if system.container == "Kubernetes":
        reason += " The pod must ask for it: resources, limits, nvidia.com/gpu: 1."
    return reason, cures.get(system.container, f"docker run {flag} ...")


def _no_driver(system: System, software: Software) -> tuple[str, str] | None:
    if software.gpu or system.is_jetson or system.driver:
        return None
    return "There is an NVIDIA GPU and no driver for it.", "sudo apt-get install nvidia-driver-580"


def _no_tensorrt(system: System, software: Software) -> tuple[str, str] | None:
    found = software.tensorrt
    if found:
        numbers = tuple(int(part) for part in found.version.split(".")[:2] if part.isdigit())
        if found.is_rtx or numbers >= _LEAST_TENSORRT:
            return None
        return f"{found} is too old. edgecls needs TensorRT 10.3 or newer.", "" if system.is_jetson else _RTX
    if software.tensorrt_problem:
        return f"TensorRT is installed and cannot be loaded: {software.tensorrt_problem}.", ""
    if not system.is_jetson:
        return "TensorRT is not installed.", _RTX
    jetpack = (system.jetpack or "")[:1]
    wanted = _PYTHON_OF_JETPACK.get(jetpack)
    if system.container:
        argument = f"--build-arg JETPACK={jetpack} " if jetpack == "7" else ""
        return "This image has no TensorRT.", f"docker build -f Dockerfile.jetson -t edgecls:jetson {argument}."
    if wanted and not software.python.startswith(f"{wanted}."):
        reason = (
            f"This is Python {software.python}, and TensorRT of JetPack {system.jetpack} belongs to Python {wanted}."
        )
        return reason, _new_environment(f"python{wanted}", jetpack)
    if system.tensorrt_python:
        reason = f"This environment does not see the system's TensorRT {system.tensorrt_python}."
        return reason, _new_environment("python3", jetpack)
    return "JetPack's TensorRT is not installed.", "sudo apt-get install nvidia-jetpack"


def _new_environment(python: str, jetpack: str) -> str:
    packages = _PACKAGES_OF_JETPACK.get(jetpack, "cuda-python")
    return (
        f"{python} -m venv --system-site-packages ~/edgecls-env && "
        f'~/edgecls-env/bin/pip install "edgecls[cpu]" {packages}'
    )


def _unreachable(system: System, software: Software) -> tuple[str, str]:
    """Why a GPU that is there, and whose driver is, cannot be used."""
    if software.gpu_problem == NO_CUDA_BINDING:
        packages = _PACKAGES_OF_JETPACK.get((system.jetpack or "")[:1], "cuda-python")
        cure = f"pip install {packages}" if system.is_jetson else _RTX
        return "No Python binding of CUDA is installed: neither cuda-bindings nor PyCUDA.", cure
    if not system.is_jetson:
        return f"CUDA finds no GPU: {software.gpu_problem}.", "nvidia-smi"
    reason = f"CUDA finds no GPU: {software.gpu_problem}. Most often the user has no right to open the GPU's devices."
    if system.container:
        return reason, 'docker run --group-add video --group-add "$(stat -c %g /dev/dri/renderD128)" ...'
    return reason, 'sudo usermod -aG video,render "$USER" && newgrp video'


@dataclass(frozen=True)
class ModelReadiness:
    """What one backend that can run here would run of a model.

    Attributes:
        name: as of `Readiness`.
        file: what it opens; empty where there is nothing for it.
        detail: what is to be known of the file, or why there is none.
        cure: as of `Readiness`.
    """

    name: BackendName
    file: str
    detail: str
    cure: str = ""

    @property
    def can_run(self) -> bool:
        return bool(self.file)


def model_readiness(
    path: Path, named: str, ready: Sequence[Readiness], software: Software, *, int8_overflows: bool
) -> tuple[ModelReadiness, ...]:
    """What each backend that can run here would run of a model, in their order.

    Args:
        path: a run folder (a member of an ensemble), a lone ONNX file or an engine.
        named: the model as it was named, for commands.
        int8_overflows: as `processor.int8_sums_overflow` finds it: OpenVINO is given FP32 then.

    Raises:
        RunError: not a run folder, or a damaged one.
    """
    if path.is_dir():
        Run(path).manifest  # noqa: B018  raises where the folder is not a run
    found = []
    for each in ready:
        if each.can_run:
            in_float = each.name == "cuda" or (each.name == "openvino" and int8_overflows)
            found.append(_of_model(each.name, path, shlex.quote(named), software, in_float=in_float))
    return tuple(found)


def _of_model(name: BackendName, path: Path, named: str, software: Software, *, in_float: bool) -> ModelReadiness:
    if path.suffix == ENGINE_SUFFIX:
        if name != "tensorrt":
            return ModelReadiness(name, "", f"{path.name} is an engine, which TensorRT runs.")
        misfit = _misfit(path, software)
        return ModelReadiness(name, "" if misfit else path.name, misfit, "edgecls engine RUN" if misfit else "")
    if name == "tensorrt":
        return _for_tensorrt(path, named, software)
    if not path.is_dir():
        return _lone(name, path, in_float=in_float)
    record = ExportRecord.read(path)
    precision: Precision = record.serves
    if in_float:
        precision = "fp16" if name == "cuda" and "fp16" in record.passed else "fp32"
    file = path / MODEL_FILES[precision]
    if not file.is_file():
        return ModelReadiness(name, "", f"There is no {file.name}.", f"edgecls export {named}")
    problem = _damage(file)
    return ModelReadiness(name, "" if problem else file.name, problem)


def _lone(name: BackendName, file: Path, *, in_float: bool) -> ModelReadiness:
    problem = _damage(file)
    if not problem and name == "openvino" and in_float and manifest_of_file(file).precision == "int8-cpu":
        problem = f"{file.name} is INT8, whose sums overflow in OpenVINO on this CPU. Use --device cpu."
    return ModelReadiness(name, "" if problem else file.name, problem)


def _damage(file: Path) -> str:
    """Why a model file cannot be trusted; empty where it is whole and belongs to its run."""
    try:
        manifest_of_file(file)
        return f"{another(file)}." if check_belongs(file) == "another" else ""
    except EdgeclsError as error:
        return f"{error}."


def _for_tensorrt(path: Path, named: str, software: Software) -> ModelReadiness:
    if not path.is_dir():
        problem = _damage(path)
        reason = problem or "TensorRT runs an engine. Build one of this file, and predict with that."
        return ModelReadiness("tensorrt", "", reason, "" if problem else f"edgecls engine {named}")
    misfits = []
    for file in sorted((path / ENGINES).glob(f"*{ENGINE_SUFFIX}")):
        misfit = _misfit(file, software)
        if not misfit:
            return ModelReadiness("tensorrt", f"{ENGINES}/{file.name}", "")
        misfits.append(f"{file.name} cannot be used here: {misfit}")
    record = ExportRecord.read(path)
    source = path / MODEL_FILES[record.engine_from]
    if not source.is_file():
        return ModelReadiness("tensorrt", "", "There is nothing to build an engine of.", f"edgecls export {named}")
    if problem := _damage(source):
        return ModelReadiness("tensorrt", "", problem)
    reason = misfits[0] if misfits else f"No engine was built yet of {source.name}."
    return ModelReadiness("tensorrt", "", reason, f"edgecls engine {named}")


def _misfit(engine: Path, software: Software) -> str:
    try:
        record = EngineRecord.read(engine)
    except RunError as error:
        return f"{error}."
    assert software.tensorrt  # only a backend that can run is asked
    why = fits(record, software.tensorrt, software.gpu)
    return f"{why}." if why else ""
