"""The FP32 graph and its ranges to the INT8 files: as many layers in INT8 as the gate lets through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import onnx

from edgecls import metrics
from edgecls.calibration.sample import CalibrationSet
from edgecls.export.calibrate import Calibrator
from edgecls.export.graphs.int8 import int8_of, layers_of_kind
from edgecls.export.job import Job
from edgecls.export.judge.float16 import FITS, Float16Fit
from edgecls.export.judge.gate import Int8, Judge, Judged, LayerError, meet_gate
from edgecls.export.judge.measure import Logits, pixels_of
from edgecls.export.options import FLAVOURS, Flavour, GateOptions
from edgecls.export.qat import quantisation_aware
from edgecls.labelled import LabelledImage, stratified_sample
from edgecls.manifest import Precision
from edgecls.runs import CALIBRATION, atomic_path

# Calibration images, and as many validation images, that tell what of the float32 graph float16 cannot hold
_N_OBSERVED: Final = 256


def quantise(
    job: Job, calibrator: Calibrator, flavours: Sequence[Flavour], fp32: Logits, fit: Float16Fit
) -> tuple[Int8, dict[Precision, Logits]]:
    """Write the INT8 files, and the ranges.

    Args:
        flavours: the files that are asked for.
        fp32: (n, n_classes), what the FP32 file answers to the validation images.
        fit: what of that file float16 cannot hold.

    Returns:
        What the files were made of, and what they answer to the validation images.
    """
    graph, probe = onnx.load(job.file("fp32")), calibrator.probe()
    calibration = calibrator.best(graph, probe)
    accuracy = job.accuracy(fp32)

    def judge(int8: Int8, flavour: Flavour) -> Judged:
        logits = job.answers(flavour, _model(job, int8, flavour).SerializeToString())
        return Judged(logits, accuracy - job.accuracy(logits))

    def fit_of(graph: onnx.ModelProto) -> Float16Fit:
        return float16_fit(job, graph, calibrator.chosen) if "int8" in flavours else FITS

    def prepared(graph: onnx.ModelProto) -> Int8:
        return Int8(graph, calibrator.calibrated(graph, calibration.method), fit_of(graph))

    asked_for = [name for kind in job.options.float_layers for name in layers_of_kind(graph, kind)]
    for_tensorrt = tuple(LayerError(name, 0.0) for name in asked_for)
    int8 = Int8(graph, calibration, fit, {"int8": for_tensorrt, "int8-cpu": ()})
    if job.options.qat:
        int8 = _trained(job, int8, fp32, flavours, judge, fit_of)
    int8, judged = meet_gate(
        int8, job.options.gate, judge, prepared, probe,
        flavours=flavours, on_step=job.progress.on_step,
    )  # fmt: skip
    for flavour in flavours:
        with atomic_path(job.file(flavour)) as partial:
            onnx.save(_model(job, int8, flavour), partial)
    int8.calibration.write(job.staged / CALIBRATION)
    return int8, {flavour: judged[flavour].logits for flavour in FLAVOURS if flavour in judged}


def _trained(
    job: Job,
    int8: Int8,
    fp32: Logits,
    flavours: Sequence[Flavour],
    judge: Judge,
    fit_of: Callable[[onnx.ModelProto], Float16Fit],
) -> Int8:
    """Trained with the rounding in place, where that takes INT8 nearer to the gate or, within it, to FP32's answers."""
    graph, learnt, told = quantisation_aware(job, int8.graph, int8.calibration, flavours)
    candidate = replace(int8, graph=graph, calibration=learnt, fit=fit_of(graph), is_trained=True)
    before, after = (_Standing.of([judge(each, flavour) for flavour in flavours], fp32) for each in (int8, candidate))
    is_kept = after.rank(job.options.gate) < before.rank(job.options.gate)
    note = f"{told}{'' if is_kept else ', and not kept'}: {before.changed_to(after)}"
    job.progress.on_step(f"int8: {note}")
    return replace(candidate if is_kept else int8, notes=(note,))


@dataclass(frozen=True)
class _Standing:
    """The worst of a few INT8 files: the most top-1 that one loses, and the fewest answers of FP32's that one keeps."""

    drop: float
    kept: float

    @classmethod
    def of(cls, judged: Sequence[Judged], fp32: Logits) -> _Standing:
        answered = metrics.answered(fp32)
        kept = (metrics.accuracy(metrics.answered(each.logits), answered) for each in judged)
        return cls(max(each.drop for each in judged), min(kept))

    def rank(self, gate: GateOptions) -> tuple[float, float]:
        """Less is better. Within the gate the answers count: a few more right ones are luck."""
        return (0.0 if gate.allows(self.drop) else self.drop), -self.kept

    def changed_to(self, after: _Standing) -> str:
        return (
            f"the fewest of FP32's answers that a file keeps went from {100 * self.kept:.2f} to {100 * after.kept:.2f} "
            f"%, the most that one loses from {100 * self.drop:.2f} to {100 * after.drop:.2f} points"
        )


def _model(job: Job, int8: Int8, flavour: Flavour) -> onnx.ModelProto:
    manifest = replace(job.manifest, precision=flavour)
    return int8_of(int8.graph, int8.calibration, flavour, manifest, int8.names_given_back(flavour), int8.fit.in_float32)


def float16_fit(job: Job, graph: onnx.ModelProto, chosen: CalibrationSet | None) -> Float16Fit:
    """What of a float32 graph float16 cannot hold, on golden, validation and calibration images."""
    validation = stratified_sample(job.data.validation, _N_OBSERVED, 0)
    images = chosen.images[:_N_OBSERVED] if chosen else ()
    observed = [*validation, *(LabelledImage(Path(image.path), "") for image in images)]
    batches = itertools.chain([job.golden.images], pixels_of(observed, job.manifest.preprocessing))
    return Float16Fit.of(graph, batches)
