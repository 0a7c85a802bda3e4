"""A run folder's checkpoint to its model files: written, checked against the checkpoint, measured side by side."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edgecls.calibration.ranges import calibrate
from edgecls.calibration.sample import SampleOptions, draw_calibration_set
from edgecls.datasets import Dataset, LabelledImage, read_split
from edgecls.errors import RunError
from edgecls.export.int8 import QUANTIZED_OPS, Flavour, int8_from_onnx
from edgecls.export.measure import Measurement, measure
from edgecls.export.onnx import onnx_from_checkpoint
from edgecls.export.parity import Golden, Parity, check_parity
from edgecls.manifest import Precision
from edgecls.runs import (
    CALIBRATION,
    CHECKPOINT,
    EXPORT,
    LATEST,
    MODEL_FILES,
    SPLIT,
    Run,
    find_run,
    write_json,
)
from edgecls.runtime.backend import BackendOptions, OnnxRuntimeBackend
from edgecls.train.checkpoint import load_checkpoint

# When predict's `--precision auto` takes INT8: at most this many points of top-1 lost, and not slower.
MAX_DROP_POINTS: Final = 1.0
MIN_SPEEDUP: Final = 1.0

_FLAVOURS: Final[tuple[Flavour, ...]] = ("int8", "int8-cpu")


@dataclass(frozen=True)
class ExportOptions:
    """Attributes:
    run: a run folder, or `latest`.
    int8: write the INT8 graphs too.
    sample: which training images calibrate them.
    """

    run: str = LATEST
    int8: bool = False
    sample: SampleOptions = field(default_factory=SampleOptions)


@dataclass(frozen=True)
class ExportResult:
    """What was written and measured; `export.json` holds the same.

    Attributes:
        serves: the precision that `predict` opens by itself on this kind of machine.
        verdict: `passed`, or `missed` where INT8 was asked for and lost too much or was not faster.
        reason: the verdict in words.
        int8_drop: top-1 that the CPU's INT8 graph loses to FP32, as a fraction; None without INT8.
        int8_speedup: its img/s over FP32's; None without INT8.
    """

    run: Path
    verdict: str
    reason: str
    serves: Precision
    parity: Parity
    precisions: dict[Precision, Measurement]
    int8_drop: float | None
    int8_speedup: float | None
    n_calibration: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": str(self.run)}


def export(
    options: ExportOptions,
    *,
    on_step: Callable[[str], None] = lambda line: None,
    on_measuring: Callable[[int], None] = lambda n: None,
    on_images: Callable[[int], None] = lambda n: None,
) -> ExportResult:
    """Write a run's model files and measure them.

    Args:
        on_step: called with a line before each step.
        on_measuring: called with the number of validation images before they are run.
        on_images: called with how many of them are done since the last call.

    Raises:
        RunError: not a run folder, or one that cannot be exported.
        ParityError: the FP32 file does not answer as the checkpoint does; nothing of it is left.
        ExportError, ImageError, DatasetError: with what to do next; older files stay as they were.
    """
    started = time.perf_counter()
    run = find_run(options.run)
    manifest = run.manifest
    dataset = _split_of(run)
    golden = Golden.of(run)
    if len(golden.validation_answers) != len(dataset.splits["val"]):
        raise RunError(f"{run.folder}: {SPLIT} and the golden answers are of two trainings; train the run again")
    fp32 = run.path(MODEL_FILES["fp32"])
    on_step(f"fp32: {CHECKPOINT} -> {fp32.name}")
    parity = _export_fp32(run, golden, fp32)
    files: dict[Precision, Path] = {"fp32": fp32}
    chosen: list[LabelledImage] = []
    if options.int8:
        chosen = draw_calibration_set(dataset, options.sample)
        on_step(f"int8: ranges from {len(chosen)} training images")
        files |= _export_int8(run, fp32, chosen)
    else:
        _remove_stale(run)
    on_step("measuring " + ", ".join(file.name for file in files.values()))
    on_measuring(len(dataset.splits["val"]))
    with contextlib.ExitStack() as stack:
        backends = {
            precision: stack.enter_context(OnnxRuntimeBackend(file, BackendOptions("cpu")))
            for precision, file in files.items()
        }
        measured = measure(
            backends,
            files,
            dataset.splits["val"],
            dataset.targets("val"),
            golden.validation_answers,
            manifest.preprocessing,
            on_images=on_images,
        )
    result = _judged(run, parity, measured, len(chosen), started)
    write_json(run.path(EXPORT), result.to_json())
    run.record()
    return result


def _split_of(run: Run) -> Dataset:
    dataset = read_split(run.path(SPLIT), run.manifest.labels)
    gone = [image.path for split in ("train", "val") for image in dataset.splits[split] if not image.path.exists()]
    if gone:
        raise RunError(
            f"{run.folder}: {len(gone)} images of the training data are no longer there, first {gone[0]}; export "
            "measures on them. Put the data back where it was, or train again"
        )
    return dataset


def _export_fp32(run: Run, golden: Golden, file: Path) -> Parity:
    """Write beside, check, then rename: a file that fails parity never stands under its name."""
    manifest = replace(run.manifest, files={}, precision="fp32")
    candidate = run.path(f".candidate.{file.name}")
    try:
        onnx_from_checkpoint(load_checkpoint(run), manifest, candidate)
        with OnnxRuntimeBackend(candidate, BackendOptions("cpu")) as backend:
            parity = check_parity(backend, golden, file)
        candidate.replace(file)
    finally:
        candidate.unlink(missing_ok=True)
    return parity


def _export_int8(run: Run, fp32: Path, calibration_set: list[LabelledImage]) -> dict[Precision, Path]:
    manifest = run.manifest
    calibration = calibrate(fp32, calibration_set, manifest.preprocessing, QUANTIZED_OPS)
    calibration.write(run.path(CALIBRATION))
    files: dict[Precision, Path] = {}
    for flavour in _FLAVOURS:
        files[flavour] = run.path(MODEL_FILES[flavour])
        int8_from_onnx(fp32, calibration, flavour, replace(manifest, files={}, precision=flavour), files[flavour])
    return files


def _remove_stale(run: Run) -> None:
    """INT8 files of an earlier export came from another model.onnx: they must not be served beside this one."""
    for name in (CALIBRATION, *(MODEL_FILES[flavour] for flavour in _FLAVOURS)):
        run.path(name).unlink(missing_ok=True)


def _judged(
    run: Run, parity: Parity, measured: dict[Precision, Measurement], n_calibration: int, started: float
) -> ExportResult:
    verdict, serves, drop, speedup = "passed", "fp32", None, None
    reason = f"fp32 answers as the checkpoint does (logits within {parity.max_logit_difference:.1g})"
    if "int8-cpu" in measured:
        fp32, int8 = measured["fp32"], measured["int8-cpu"]
        drop, speedup = fp32.accuracy - int8.accuracy, int8.images_per_second / fp32.images_per_second
        lost = f"{-100 * drop:+.2f} points of top-1" if round(100 * drop, 2) else "top-1 unchanged"
        changed = f"{lost}, {speedup:.2f} times the speed of fp32 on this CPU"
        if 100 * drop <= MAX_DROP_POINTS and speedup >= MIN_SPEEDUP:
            serves, reason = "int8-cpu", f"int8: {changed}"
        else:
            verdict, reason = "missed", f"int8: {changed}; predict uses fp32 unless told --precision int8"
    return ExportResult(
        run.folder, verdict, reason, serves, parity, measured, drop, speedup, n_calibration,  # type: ignore[arg-type]
        time.perf_counter() - started,
    )  # fmt: skip
