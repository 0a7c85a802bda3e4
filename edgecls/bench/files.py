"""Which files of a run are benchmarked on which devices of this machine, and how accurate they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgecls.errors import MissingExtra, OptionError, RunError
from edgecls.manifest import Precision
from edgecls.runs import EXPORT, MODEL_FILES
from edgecls.runtime.backends.engine_file import ENGINE_SUFFIX, EngineRecord
from edgecls.runtime.backends.export_record import ExportRecord
from edgecls.runtime.backends.onnx_manifest import manifest_of_file
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.runtime.backends.selection import Candidate, can_run, select
from edgecls.runtime.options import AskedPrecision, Device

# What each device is meant to run: INT8 for TensorRT is slow elsewhere, and so is float16 on a CPU
_MEANT_FOR: Final[Mapping[Device, tuple[Precision, ...]]] = {
    "cpu": ("fp32", "int8-cpu"),
    "openvino": ("fp32", "int8-cpu"),
    "cuda": ("fp32", "fp16"),
    "tensorrt": ("fp32", "fp16", "int8"),
}


@dataclass(frozen=True)
class Accuracy:
    """What export measured of a file on `n_images` validation images; agreement is with FP32's answers."""

    top1: float
    agreement: float | None
    n_images: int


def find_candidates(
    path: Path, precisions: Sequence[AskedPrecision], devices: Sequence[Device]
) -> list[tuple[Candidate, Precision]]:
    """What is to be measured, by precision and then device.

    Args:
        precisions, devices: as in `BenchOptions`.

    Raises:
        RunError: nothing there, not exported yet, or nothing here runs it.
        OptionError: a device that is not there, or a precision that the file does not have.
        MissingExtra: nothing that could run it is installed.
    """
    here = _here(path)
    named = "auto" not in devices
    found: list[tuple[Candidate, Precision]] = []
    for device in devices if named else dict.fromkeys(candidate.device for candidate, _ in here):
        for asked in precisions:
            wanted = _wanted(path, asked, device)
            fitting = [(c, precision) for c, precision in here if c.device == device and precision in wanted]
            if not fitting and named:  # says why; or TensorRT within ONNX Runtime, for who asks for it
                candidate = select(path, asked, BackendOptions(device))
                fitting = [(candidate, _precision_of(candidate.file))]
            found += fitting
    if not found:
        first = select(path, precisions[0], BackendOptions("cpu"))  # as a rule it says what is missing
        raise RunError(f"nothing here runs {first.file} at --precision {' '.join(precisions)}")
    order = list(MODEL_FILES)
    return sorted(dict.fromkeys(found), key=lambda each: order.index(each[1]))


def _here(path: Path) -> list[tuple[Candidate, Precision]]:
    """All that this machine can run of a run folder, or a lone file."""
    if path.suffix == ENGINE_SUFFIX and not path.is_dir():
        return [(Candidate(path, "tensorrt"), _precision_of(path))]
    files: dict[Path, Precision] = {path / name: precision for precision, name in MODEL_FILES.items()}
    if not path.is_dir():
        files = {path: _precision_of(path)}
    found: list[tuple[Candidate, Precision]] = []
    missing: MissingExtra | None = None
    for file, precision in files.items():
        try:
            runs = can_run(file, precision)
        except MissingExtra as error:  # an engine of another precision may still be there
            missing = error
            continue
        found += [
            (candidate, precision)
            for candidate in runs
            if candidate.file.is_file()
            and (path.is_dir() or candidate.file == path)
            and (candidate.device != "tensorrt" or candidate.file.suffix == ENGINE_SUFFIX)
        ]
    if not found:
        if missing and any(file.is_file() for file in files):
            raise missing
        raise RunError(f"{path}: no model file in it; make them with: edgecls export {path} --int8")
    return found


def _wanted(path: Path, asked: AskedPrecision, device: Device) -> Sequence[Precision]:
    if not path.is_dir():
        inside = _precision_of(path)
        if asked != "auto" and not inside.startswith(asked):
            raise OptionError(f"--precision {asked}: {path} is {inside}; leave the flag out")
        return [inside]
    if asked == "auto":
        return _MEANT_FOR[device]
    return ["int8-cpu"] if asked == "int8" and device != "tensorrt" else [asked]


def _precision_of(file: Path) -> Precision:
    return EngineRecord.read(file).precision if file.suffix == ENGINE_SUFFIX else manifest_of_file(file).precision


def accuracies_of(path: Path) -> dict[Precision, Accuracy]:
    """What export measured, by precision; of a lone file, in the run that it lies in. Empty where nothing was.

    Raises:
        RunError: export.json is damaged.
    """
    folders = [path] if path.is_dir() else [path.parent, path.parent.parent]
    run = next((each for each in folders if (each / EXPORT).is_file()), folders[0])
    return {
        precision: Accuracy(each.accuracy, each.agreement, each.n_images)
        for precision, each in ExportRecord.read(run).files.items()
        if each.accuracy is not None and each.n_images
    }
