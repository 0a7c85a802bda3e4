"""What is measured of the files of an export, and what is decided by it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from edgecls import metrics
from edgecls.calibration.sample import CalibrationSet
from edgecls.export.graphs.graph import embed_manifest
from edgecls.export.job import Job
from edgecls.export.judge.float16 import FITS, Float16Fit
from edgecls.export.judge.gate import Int8
from edgecls.export.judge.measure import BATCH_SIZE, ClassDrop, Logits, Measurement, speeds
from edgecls.export.judge.parity import Parity, compared
from edgecls.export.judge.temperature import fit_temperature
from edgecls.export.judge.verdict import decide
from edgecls.export.options import FLAVOURS
from edgecls.export.result import ExportResult
from edgecls.manifest import Manifest, Precision
from edgecls.runs import MODEL_FILES, atomic_path, sha256_of
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend

FOR_CPU: Final[tuple[Precision, ...]] = ("fp32", "int8-cpu")

_FEW_TO_JUDGE: Final = 100  # validation images below which one alone is more than a point
_MANY_CHANGED: Final = 0.1  # share of answers
_TIMED_BATCH_SIZES: Final = (1, 4, BATCH_SIZE)


@dataclass(frozen=True)
class Written:
    """The files of an export, before they are measured.

    Attributes:
        parity: of FP32 and the checkpoint.
        logits: by file, what it answers to the validation images, (n, n_classes).
        fit: what of the FP32 graph float16 cannot hold; empty where no float16 was asked for.
        chosen: the calibration images; None without INT8.
        int8: what the INT8 files were made of; None without them.
    """

    parity: Parity
    logits: Mapping[Precision, Logits]
    fit: Float16Fit = FITS
    chosen: CalibrationSet | None = None
    int8: Int8 | None = None

    def given_back(self, precision: Precision) -> tuple[str, ...]:
        return self.int8.names_given_back(precision) if self.int8 and precision in ("int8", "int8-cpu") else ()

    def fit_of(self, precision: Precision) -> Float16Fit:
        """What float16 cannot hold of the graph that this file was made of; nothing for a file without float16."""
        if precision == "int8" and self.int8:
            return self.int8.fit
        return self.fit if precision == "fp16" else FITS


def report(job: Job, written: Written, started: float) -> ExportResult:
    """Measure the files, put each one's temperature into it, and judge.

    Args:
        started: when the export began, by `time.perf_counter`.
    """
    precisions = list(written.logits)
    job.progress.on_step("measuring " + ", ".join(MODEL_FILES[precision] for precision in precisions))
    with contextlib.ExitStack() as stack:
        backends = {precision: stack.enter_context(job.open(precision)) for precision in precisions}
        timed = _timed(job, backends)
        bare = {each: _measurement(job, written, each, backend, timed[each]) for each, backend in backends.items()}
    measured = {}
    for precision, measurement in bare.items():
        file = job.file(precision)
        _embed(replace(job.manifest, precision=precision, temperature=measurement.temperature), file)
        measured[precision] = replace(measurement, bytes=file.stat().st_size, sha256=sha256_of(file))
    verdict, int8, chosen = decide(measured, job.options.gate, written.parity), written.int8, written.chosen
    return ExportResult(
        run=job.run.folder,
        verdict="passed" if verdict.passed else "missed",
        reason=verdict.reason,
        serves=verdict.serves,
        engine_from=verdict.engine_from,
        parity=written.parity,
        precisions=measured,
        int8_drop=verdict.int8_drop,
        int8_speedup=verdict.int8_speedup,
        gate=job.options.gate,
        method=int8.calibration.method if int8 else None,
        n_calibration=len(chosen.images) if chosen else 0,
        is_equalised=bool(int8 and int8.is_equalised),
        is_trained=bool(int8 and int8.is_trained),
        notes=(
            *(chosen.notes() if chosen else ()),
            *(int8.notes if int8 else ()),
            *_repairs(written),
            *_doubts(job, measured),
            *_offer(job, written, measured),
        ),
        seconds=time.perf_counter() - started,
    )


def _timed(job: Job, backends: Mapping[Precision, OnnxRuntimeBackend]) -> dict[Precision, dict[int, float]]:
    """Thoroughly what runs on CPUs; the others are for GPUs, and here only shown to be no use on a CPU."""
    for_cpu = {precision: backend for precision, backend in backends.items() if precision in FOR_CPU}
    for_gpu = {precision: backend for precision, backend in backends.items() if precision not in FOR_CPU}
    return {
        **speeds(for_cpu, job.golden.images, _TIMED_BATCH_SIZES, n_rounds=5),
        **speeds(for_gpu, job.golden.images, [BATCH_SIZE], n_rounds=1),
    }


def _measurement(
    job: Job, written: Written, precision: Precision, backend: OnnxRuntimeBackend, timed: dict[int, float]
) -> Measurement:
    logits, reference = written.logits[precision], metrics.answered(written.logits["fp32"])
    every_answer = np.concatenate([backend.infer(job.golden.images), logits])
    bare = Measurement(
        accuracy=None,
        agreement=None,
        images_per_second=timed[BATCH_SIZE],
        speeds=timed,
        bytes=job.file(precision).stat().st_size,
        backend=backend.name,
        batch_size=BATCH_SIZE,
        n_images=len(job.truth),
        golden=compared(backend, job.golden),
        given_back=written.given_back(precision),
        n_answers=len(every_answer),
        not_finite=int((~metrics.is_finite(every_answer)).sum()),
        in_float32=written.fit_of(precision).in_float32,
        overflows=written.fit_of(precision).left,
    )
    if not len(job.truth):
        return bare
    answered = metrics.answered(logits)
    fitted = fit_temperature(logits, job.truth)
    expected = job.data.checkpoint_answers if precision == "fp32" else reference
    return replace(
        bare,
        accuracy=metrics.accuracy(answered, job.truth),
        agreement=None if expected is None else metrics.accuracy(answered, expected),
        paired=None if precision == "fp32" else metrics.paired_difference(reference, answered, job.truth),
        classes=_class_drops(job, reference, answered),
        temperature=fitted.temperature,
        ece_before=fitted.ece_before,
        ece_after=fitted.ece_after,
    )


def _repairs(written: Written) -> list[str]:
    """What stays float32, and why."""
    lines = []
    for precision in written.logits:
        fit = written.fit_of(precision)
        if fit.misfits:
            more = f" (and {len(fit.misfits) - 1} more do not fit)" if len(fit.misfits) > 1 else ""
            nodes = f"{len(fit.in_float32)} nodes stay float32" if len(fit.in_float32) != 1 else "1 node stays float32"
            lines.append(f"{MODEL_FILES[precision]}: {nodes}, because {fit.misfits[0]}{more}")
    return lines


def _doubts(job: Job, measured: Mapping[Precision, Measurement]) -> list[str]:
    """Why the figures may say less than they seem to."""
    n = len(job.truth)
    if not n:
        return []
    lines = []
    if n < _FEW_TO_JUDGE:
        lines.append(f"{n} validation images are few: one of them is {100 / n:.1f} points")
    without = len(job.manifest.labels) - len(set(job.truth.tolist()))
    if without and n >= len(job.manifest.labels):
        lines.append(f"{without} classes have no validation image: what they lose is not seen")
    for precision, each in measured.items():
        if each.paired and each.paired.changed > _MANY_CHANGED * n:
            lines.append(
                f"{MODEL_FILES[precision]} changes {each.paired.changed / n:.0%} of the answers: "
                "equal top-1 may be luck"
            )
    return lines


def _offer(job: Job, written: Written, measured: Mapping[Precision, Measurement]) -> list[str]:
    """What is left to try where INT8 loses too much."""
    losing = [each.paired for name, each in measured.items() if name in FLAVOURS and each.paired]
    if job.options.qat or all(job.options.gate.allows(each.drop) for each in losing):
        return []
    n = len(job.data.training) or (len(written.chosen.images) if written.chosen else 0)
    return [f"edgecls export --int8 --qat may help: it trains the network with the rounding in place, on {n:,} images"]


def _class_drops(job: Job, reference: metrics.Indices, answered: metrics.Indices) -> tuple[ClassDrop, ...]:
    labels = job.manifest.labels
    of_fp32, of_this = (metrics.class_accuracies(each, job.truth, len(labels)) for each in (reference, answered))
    counts = np.bincount(job.truth, minlength=len(labels))
    lost = [i for i in range(len(labels)) if of_this[i] < of_fp32[i]]
    lost.sort(key=lambda i: of_this[i] - of_fp32[i])
    return tuple(ClassDrop(labels[i], int(counts[i]), float(of_fp32[i]), float(of_this[i])) for i in lost)


def _embed(manifest: Manifest, file: Path) -> None:
    graph = onnx.load(file)
    embed_manifest(graph, manifest)
    with atomic_path(file) as partial:
        onnx.save(graph, partial)
