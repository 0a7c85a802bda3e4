"""Which backends can run here; for each that cannot, the one reason and the command that mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edgecls.device.software import Software
from edgecls.device.system import System
from edgecls.errors import RunError
from edgecls.manifest import Precision
from edgecls.runs import ENGINES, MODEL_FILES
from edgecls.runtime.backends.cuda import NO_CUDA_BINDING
from edgecls.runtime.backends.engine_file import ENGINE_SUFFIX, EngineRecord
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.runtime.backends.tensor_rt import fits

BackendName = Literal["cpu", "openvino", "cuda", "tensorrt"]

_LEAST_TENSORRT: Final = 10
# What the system's TensorRT belongs to: no other Python can load it
_PYTHON_OF_JETPACK: Final = {"6": "3.10", "7": "3.12"}
# cuda-bindings has no release for CUDA 12.6; cuda-python 12.6 brings the same modules
_BINDING_OF_JETPACK: Final = {
    "6": 'pip install "cuda-python==12.6.2.post1" "numpy<2"',
    "7": 'pip install "cuda-python>=13,<14"',
}
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
    if not system.has_nvidia_gpu:
        return Readiness("cuda", False, "There is no NVIDIA GPU.")
    if "CUDAExecutionProvider" not in software.providers:
        if system.is_jetson:
            return Readiness("cuda", False, "ONNX Runtime from PyPI has no CUDA for a Jetson. Use TensorRT there.")
        reason = "This ONNX Runtime has no CUDA." if software.providers else "ONNX Runtime is not installed."
        return Readiness(
            "cuda",
            False,
            reason,
            f'{"pip uninstall -y onnxruntime; " if software.providers else ""}pip install "edgecls[gpu]"',
        )
    if problem := _unreachable(system, software):
        return Readiness("cuda", False, *problem)
    return Readiness("cuda", True, f"{_onnxruntime(software)} with CUDA")


def _tensorrt(system: System, software: Software) -> Readiness:
    if not system.has_nvidia_gpu:
        return Readiness("tensorrt", False, "There is no NVIDIA GPU.")
    problem = _jetpack_too_old(system) or _no_tensorrt(system, software) or _unreachable(system, software)
    if problem:
        return Readiness("tensorrt", False, *problem)
    assert software.tensorrt
    assert software.gpu
    major, minor = software.gpu.compute_capability
    return Readiness(
        "tensorrt", True, f"{software.tensorrt} on {software.gpu.name} (compute capability {major}.{minor})"
    )


def _jetpack_too_old(system: System) -> tuple[str, str] | None:
    if system.is_jetson and system.jetpack in ("4", "5", "6.0"):
        return (
            f"JetPack {system.jetpack} has TensorRT 8. edgecls needs JetPack 6.1 or newer: flash the board with it.",
            "",
        )
    return None


def _no_tensorrt(system: System, software: Software) -> tuple[str, str] | None:
    found = software.tensorrt
    if found and int(found.version.split(".")[0]) < _LEAST_TENSORRT and not found.is_rtx:
        return f"{found} is too old. edgecls needs TensorRT 10 or newer.", "" if system.is_jetson else _RTX
    if found:
        return None
    if not system.is_jetson:
        return "TensorRT is not installed.", _RTX
    wanted = _PYTHON_OF_JETPACK.get((system.jetpack or "")[:1])
    if wanted and not software.python.startswith(f"{wanted}."):
        reason = (
            f"This is Python {software.python}, and TensorRT of JetPack {system.jetpack} belongs to Python {wanted}."
        )
        return reason, _new_environment(f"python{wanted}")
    if system.tensorrt_python:
        reason = f"This environment does not see the system's TensorRT {system.tensorrt_python}."
        return reason, _new_environment("python3")
    if system.container:
        return "This image has no TensorRT.", "docker build -f Dockerfile.jetson -t edgecls:jetson ."
    return "JetPack's TensorRT is not installed.", "sudo apt-get install nvidia-jetpack"


def _new_environment(python: str) -> str:
    return f'{python} -m venv --system-site-packages ~/edgecls-env && ~/edgecls-env/bin/pip install "edgecls[cpu]"'


def _unreachable(system: System, software: Software) -> tuple[str, str] | None:
    """Why a GPU that is there cannot be used."""
    if software.gpu:
        return None
    if system.container and not system.gpu_nodes:
        flag = "--runtime nvidia" if system.is_jetson else "--gpus all"
        return "This container was not given the GPU.", f"docker run {flag} ..."
    if not system.is_jetson and not system.driver:
        return "There is an NVIDIA GPU and no driver for it.", "sudo apt-get install nvidia-driver-580"
    if software.gpu_problem == NO_CUDA_BINDING:
        cure = _BINDING_OF_JETPACK.get((system.jetpack or "")[:1]) if system.is_jetson else _RTX
        return (
            "No Python binding of CUDA is installed: neither cuda-bindings nor PyCUDA.",
            cure or "pip install cuda-python",
        )
    if system.is_jetson:
        reason = f"CUDA finds no GPU ({software.gpu_problem}). Mostly this user may not use the GPU's devices."
        return reason, 'sudo usermod -aG video,render "$USER"   # then log in again'
    return f"CUDA finds no GPU ({software.gpu_problem}).", "nvidia-smi   # says whether the driver works"


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
        RunError: a damaged run.
    """
    found = []
    for each in ready:
        if each.can_run:
            in_float = each.name == "cuda" or (each.name == "openvino" and int8_overflows)
            found.append(_of_model(each.name, path, named, software, in_float=in_float))
    return tuple(found)


def _of_model(name: BackendName, path: Path, named: str, software: Software, *, in_float: bool) -> ModelReadiness:
    if path.suffix == ENGINE_SUFFIX:
        if name != "tensorrt":
            return ModelReadiness(name, "", f"{path.name} is an engine, which TensorRT runs.")
        misfit = _misfit(path, software)
        return ModelReadiness(name, "" if misfit else path.name, misfit, _engine(named) if misfit else "")
    if name == "tensorrt":
        return _for_tensorrt(path, named, software)
    if not path.is_dir():
        return ModelReadiness(name, path.name, "")
    record = ExportRecord.read(path)
    precision: Precision = record.serves
    if in_float:
        precision = "fp16" if name == "cuda" and "fp16" in record.passed else "fp32"
    file = path / MODEL_FILES[precision]
    if not file.is_file():
        return ModelReadiness(name, "", f"There is no {file.name}.", f"edgecls export {named}")
    return ModelReadiness(name, file.name, "")


def _for_tensorrt(path: Path, named: str, software: Software) -> ModelReadiness:
    if not path.is_dir():
        return ModelReadiness("tensorrt", "", "No engine was built of this file.", _engine(named))
    misfits = []
    for file in sorted((path / ENGINES).glob(f"*{ENGINE_SUFFIX}")):
        misfit = _misfit(file, software)
        if not misfit:
            return ModelReadiness("tensorrt", f"{ENGINES}/{file.name}", "")
        misfits.append(f"{file.name} is for another machine: {misfit}")
    record = ExportRecord.read(path)
    if not (path / MODEL_FILES[record.engine_from]).is_file():
        return ModelReadiness("tensorrt", "", "There is nothing to build an engine of.", f"edgecls export {named}")
    reason = misfits[0] if misfits else f"No engine was built yet of {MODEL_FILES[record.engine_from]}."
    return ModelReadiness("tensorrt", "", reason, _engine(named))


def _engine(named: str) -> str:
    return f"edgecls engine {named}"


def _misfit(engine: Path, software: Software) -> str:
    try:
        record = EngineRecord.read(engine)
    except RunError as error:
        return str(error)
    assert software.tensorrt  # only a backend that can run is asked
    why = fits(record, software.tensorrt, software.gpu)
    return f"{why}." if why else ""
