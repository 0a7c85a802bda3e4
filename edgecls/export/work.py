"""One export: the files in the staging folder, what they answer, and what is measured of them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from edgecls import images, metrics
from edgecls.calibration.collectors import DEFAULT_METHOD
from edgecls.calibration.options import METHODS, Method
from edgecls.calibration.ranges import Calibration, calibrate
from edgecls.calibration.sample import CalibrationSet, choose_calibration_set
from edgecls.datasets import ClassNames, LabelledImage, stratified_sample, targets_of
from edgecls.errors import ExportError, OptionError, RunError
from edgecls.export.data import ExportData
from edgecls.export.graphs.fp16 import fp16_from_onnx, half
from edgecls.export.graphs.graph import embed_manifest, needs_onnx_runtime
from edgecls.export.graphs.int8 import QUANTIZED_OPS, write_int8
from edgecls.export.judge.float16 import Overflow, halves, overflows, ranges_of
from edgecls.export.judge.gate import Int8, meet_gate, noise
from edgecls.export.judge.measure import BATCH_SIZE, ClassDrop, Logits, Measurement, answers, pixels_of, speeds
from edgecls.export.judge.parity import Parity, check_parity, compared
from edgecls.export.judge.temperature import fit_temperature
from edgecls.export.judge.verdict import decide
from edgecls.export.onnx import onnx_from_run
from edgecls.export.options import AUTO, FLAVOURS, ExportOptions, Flavour
from edgecls.export.result import ExportResult
from edgecls.golden import Golden
from edgecls.images import Pixels
from edgecls.manifest import Manifest, Precision
from edgecls.progress import Progress
from edgecls.runs import (
    CALIBRATION,
    CHECKPOINT,
    MODEL_FILES,
    Run,
    atomic_path,
    sha256_of,
)
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions

N_PROBE: Final = 32  # calibration images by which range methods and layers are compared


# Of the logits' variance. Networks whose top-1 INT8 leaves alone stay below; EfficientNet-B0, whose SiLU makes a few
# values 300 times as large as the most, had 0.98 by mse and 0.005 by entropy, and lost 38 points of top-1 and none.
_NOISY: Final = 0.02


# Calibration images, and as many validation images, that tell what of the float32 graph float16 cannot hold
_N_OBSERVED: Final = 256


_FEW_TO_JUDGE: Final = 100  # validation images below which one alone is more than a point


_MANY_CHANGED: Final = 0.1  # share of answers


FOR_CPU: Final[tuple[Precision, ...]] = ("fp32", "int8-cpu")


_TIMED_BATCH_SIZES: Final = (1, 4, BATCH_SIZE)


class Work:
    """One export: files in the staging folder, and what they answered to the validation images."""

    def __init__(self, run: Run, options: ExportOptions, data: ExportData, staged: Path, progress: Progress) -> None:
        self.run, self.options, self.data, self.staged, self.progress = run, options, data, staged, progress
        self.manifest = replace(run.manifest, files={}, precision="fp32", temperature=1.0)
        self.golden = Golden.of(run)
        self.truth: metrics.Indices = targets_of(data.validation, self.manifest.labels)
        self.logits: dict[Precision, Logits] = {}
        self.calibration_set: CalibrationSet | None = None
        self.int8: Int8 | None = None
        self.kept_calibration = _kept_calibration(run, progress) if options.int8 else None
        if options.int8:
            self.calibration_set = self._choose_calibration_set()  # first: what is wrong with it is known in a second
        self.parity = self._write_fp32()
        self.precisions = self._precisions()
        self._answer("fp32")
        self.overflows = self._overflows(onnx.load(self._file("fp32"))) if "fp16" in self.precisions else ()
        if "fp16" in options.precisions:
            progress.on_step("fp16: weights and maths in float16")
            fp16_from_onnx(self._file("fp32"), replace(self.manifest, precision="fp16"), self._file("fp16"))
            self._answer("fp16")
        if self.calibration_set:
            self.int8 = self._write_int8(self.calibration_set)

    def _precisions(self) -> tuple[Precision, ...]:
        """Those asked for, less what only TensorRT reads where it cannot run the graph."""
        if not needs_onnx_runtime(onnx.load(self._file("fp32"))):
            return self.options.precisions
        trees = MODEL_FILES["fp32"] if self.manifest.head == "network" else self.manifest.head
        if self.options.engine:
            raise OptionError(
                f"--engine: TensorRT cannot run the trees of {trees}; ONNX Runtime can. For an engine train "
                "with --classifier svm or logistic"
            )
        if "int8" in self.options.precisions:
            self.progress.on_step(f"no {MODEL_FILES['int8']}: it is for TensorRT, which cannot run {trees}")
        return tuple(precision for precision in self.options.precisions if precision != "int8")

    def _file(self, precision: Precision) -> Path:
        return self.staged / MODEL_FILES[precision]

    def _open(self, precision: Precision) -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(self._file(precision), BackendOptions("cpu"))

    def _write_fp32(self) -> Parity:
        file = self._file("fp32")
        if self.manifest.origin == "adopted":
            self.progress.on_step(f"fp32: {file.name}, as it was adopted")
            if sha256_of(self.run.path(file.name)) != self.run.manifest.files.get(file.name):
                raise RunError(
                    f"{self.run.path(file.name)} is not the file that was adopted (another sha256); adopt it again"
                )
            shutil.copyfile(self.run.path(file.name), file)
        else:
            self.progress.on_step(f"fp32: {CHECKPOINT} -> {file.name}")
            onnx_from_run(self.run, self.manifest, file)
        if not np.isfinite(self.golden.logits).all():
            raise ExportError(
                f"{self.run.folder}: the network itself answers its golden images with numbers that are not finite, so "
                "no file of it can be right; nothing was written. Train again, with a lower --lr"
            )
        with self._open("fp32") as backend:
            return check_parity(backend, self.golden, self.run.path(file.name))

    def _answer(self, precision: Precision) -> None:
        validation = self.data.validation
        if not validation:
            return
        self.progress.on_pass(f"{precision} on validation images", len(validation))
        with self._open(precision) as backend:
            self.logits[precision] = answers(
                backend, validation, self.manifest.preprocessing, on_images=self.progress.on_images
            )

    def _choose_calibration_set(self) -> CalibrationSet:
        chosen = choose_calibration_set(
            self.options.sample,
            ClassNames.of(self.manifest),
            self.manifest.preprocessing,
            self.data.training,
            self.data.held_out,
        )
        for note in chosen.notes():
            self.progress.on_step(f"warning: {note}")
        return chosen

    def _overflows(self, graph: onnx.ModelProto) -> tuple[Overflow, ...]:
        """What of a float32 graph float16 cannot hold, on golden, validation and calibration images."""
        halved = half(graph)
        validation = stratified_sample(self.data.validation, _N_OBSERVED, 0)
        chosen = self.calibration_set.images[:_N_OBSERVED] if self.calibration_set else ()
        observed = [*validation, *(LabelledImage(Path(image.path), "") for image in chosen)]
        batches = itertools.chain([self.golden.images], pixels_of(observed, self.manifest.preprocessing))
        return overflows(graph, halved, ranges_of(graph, halves(halved), batches))

    def _overflows_of(self, precision: Precision) -> tuple[Overflow, ...]:
        if precision == "fp16":
            return self.overflows
        if precision != "int8" or not self.int8:
            return ()
        graph, ranges = self.int8.graph, self.int8.calibration.ranges
        return (
            self._overflows(graph)
            if self.int8.is_equalised
            else self.overflows or overflows(graph, half(graph), ranges)
        )

    def _write_int8(self, chosen: CalibrationSet) -> Int8:
        manifest, options = self.manifest, self.options
        graph = onnx.load(self._file("fp32"))
        probe = _load(chosen, N_PROBE, manifest)
        calibration = self._best_calibration(graph, chosen, probe)
        # layers given back to float are in float16 there: nothing that is tried would help
        hopeless: Sequence[Flavour] = ["int8"] if self.overflows and "int8" in self.precisions else []
        int8 = meet_gate(
            Int8(graph, calibration),
            options.gate,
            self._drop_of,
            lambda graph: self._calibrated(graph, chosen, calibration.method),
            probe,
            flavours=[flavour for flavour in FLAVOURS if flavour in self.precisions and flavour not in hopeless],
            on_step=self.progress.on_step,
        )
        for flavour in hopeless:
            self._drop_of(int8, flavour)
        int8.calibration.write(self.staged / CALIBRATION)
        return int8

    def _best_calibration(self, graph: onnx.ModelProto, chosen: CalibrationSet, probe: Pixels) -> Calibration:
        """By the method asked for; by `auto`, that with the least noise where the default leaves much."""
        if self.options.method != AUTO:
            return self._calibrated(graph, chosen, self.options.method)
        calibrations = [self._calibrated(graph, chosen, DEFAULT_METHOD)]
        noises = [noise(graph, calibrations[0], probe)]
        if noises[0] <= _NOISY:
            return calibrations[0]
        self.progress.on_step(
            f"int8: {noises[0]:.0%} of the logits' variance is noise by {DEFAULT_METHOD}: trying others"
        )
        for method in METHODS:
            if method != DEFAULT_METHOD:
                calibrations.append(self._calibrated(graph, chosen, method))
                noises.append(noise(graph, calibrations[-1], probe))
        best = int(np.argmin(noises))
        self.progress.on_step(f"int8: {calibrations[best].method} leaves the least noise, {noises[best]:.1%}")
        return calibrations[best]

    def _calibrated(self, graph: onnx.ModelProto, chosen: CalibrationSet, method: Method) -> Calibration:
        n = len(chosen.images)
        self.progress.on_pass(f"ranges ({method})", n)
        kept = self.kept_calibration
        calibration = calibrate(
            graph,
            chosen,
            self.manifest.preprocessing,
            QUANTIZED_OPS,
            method,
            kept=kept,
            on_images=self.progress.on_images,
        )
        reused = calibration is kept
        source = f"as kept in {CALIBRATION}" if reused else f"from {n} images of {chosen.source}, {method}"
        self.progress.on_step(f"int8: {len(calibration.ranges)} ranges {source}")
        return calibration

    def _drop_of(self, int8: Int8, flavour: Flavour) -> float:
        manifest = replace(self.manifest, precision=flavour)
        write_int8(int8.graph, int8.calibration, flavour, manifest, self._file(flavour), int8.names_given_back(flavour))
        self._answer(flavour)
        return self._accuracy("fp32") - self._accuracy(flavour)

    def _accuracy(self, precision: Precision) -> float:
        return metrics.accuracy(metrics.answered(self.logits[precision]), self.truth)

    def result(self, started: float) -> ExportResult:
        """Measure what was written, put each file's temperature into it, and judge."""
        self.progress.on_step("measuring " + ", ".join(MODEL_FILES[precision] for precision in self.precisions))
        with contextlib.ExitStack() as stack:
            backends = {precision: stack.enter_context(self._open(precision)) for precision in self.precisions}
            timed = self._timed(backends)
            measured = {
                precision: self._measurement(precision, backend, timed[precision])
                for precision, backend in backends.items()
            }
        for precision, measurement in measured.items():
            manifest = replace(self.manifest, precision=precision, temperature=measurement.temperature)
            _embed(manifest, self._file(precision))
            file = self._file(precision)
            measured[precision] = replace(measurement, bytes=file.stat().st_size, sha256=sha256_of(file))
        return self._judged(measured, started)

    def _timed(self, backends: Mapping[Precision, OnnxRuntimeBackend]) -> dict[Precision, dict[int, float]]:
        """Thoroughly what runs on CPUs; the others are for GPUs, and here only shown to be no use on a CPU."""
        for_cpu = {precision: backend for precision, backend in backends.items() if precision in FOR_CPU}
        for_gpu = {precision: backend for precision, backend in backends.items() if precision not in FOR_CPU}
        return {
            **speeds(for_cpu, self.golden.images, _TIMED_BATCH_SIZES, n_rounds=15),
            **speeds(for_gpu, self.golden.images, [BATCH_SIZE], n_rounds=3),
        }

    def _measurement(self, precision: Precision, backend: OnnxRuntimeBackend, timed: dict[int, float]) -> Measurement:
        every_answer = np.concatenate([backend.infer(self.golden.images), *self._answers_of(precision)])
        bare = Measurement(
            accuracy=None,
            agreement=None,
            images_per_second=timed[BATCH_SIZE],
            speeds=timed,
            bytes=self._file(precision).stat().st_size,
            backend=backend.name,
            batch_size=BATCH_SIZE,
            n_images=len(self.truth),
            golden=compared(backend, self.golden),
            given_back=self._given_back(precision),
            n_answers=len(every_answer),
            not_finite=int((~metrics.is_finite(every_answer)).sum()),
            overflows=self._overflows_of(precision),
        )
        if not len(self.truth):
            return bare
        logits, reference = self.logits[precision], metrics.answered(self.logits["fp32"])
        answered = metrics.answered(logits)
        fitted = fit_temperature(logits, self.truth)
        expected = self.data.checkpoint_answers if precision == "fp32" else reference
        return replace(
            bare,
            accuracy=metrics.accuracy(answered, self.truth),
            agreement=None if expected is None else metrics.accuracy(answered, expected),
            paired=None if precision == "fp32" else metrics.paired_difference(reference, answered, self.truth),
            classes=self._class_drops(reference, answered),
            temperature=fitted.temperature,
            ece_before=fitted.ece_before,
            ece_after=fitted.ece_after,
        )

    def _answers_of(self, precision: Precision) -> list[Logits]:
        return [self.logits[precision]] if precision in self.logits else []

    def _given_back(self, precision: Precision) -> tuple[str, ...]:
        return self.int8.names_given_back(precision) if self.int8 and precision in ("int8", "int8-cpu") else ()

    def _doubts(self, measured: Mapping[Precision, Measurement]) -> list[str]:
        """Why the figures may say less than they seem to."""
        n = len(self.truth)
        if not n:
            return []
        lines = []
        if n < _FEW_TO_JUDGE:
            lines.append(f"{n} validation images are few: one of them is {100 / n:.1f} points")
        without = len(self.manifest.labels) - len(set(self.truth.tolist()))
        if without and n >= len(self.manifest.labels):
            lines.append(f"{without} classes have no validation image: what they lose is not seen")
        for precision, each in measured.items():
            if each.paired and each.paired.changed > _MANY_CHANGED * n:
                lines.append(
                    f"{MODEL_FILES[precision]} changes {each.paired.changed / n:.0%} of the answers: "
                    "equal top-1 may be luck"
                )
        return lines

    def _class_drops(self, reference: metrics.Indices, answered: metrics.Indices) -> tuple[ClassDrop, ...]:
        labels = self.manifest.labels
        of_fp32, of_this = (metrics.class_accuracies(each, self.truth, len(labels)) for each in (reference, answered))
        counts = np.bincount(self.truth, minlength=len(labels))
        lost = [i for i in range(len(labels)) if of_this[i] < of_fp32[i]]
        lost.sort(key=lambda i: of_this[i] - of_fp32[i])
        return tuple(ClassDrop(labels[i], int(counts[i]), float(of_fp32[i]), float(of_this[i])) for i in lost)

    def _judged(self, measured: dict[Precision, Measurement], started: float) -> ExportResult:
        verdict = decide(measured, self.options.gate, self.parity)
        return ExportResult(
            run=self.run.folder,
            verdict="passed" if verdict.passed else "missed",
            reason=verdict.reason,
            serves=verdict.serves,
            engine_from=verdict.engine_from,
            parity=self.parity,
            precisions=measured,
            int8_drop=verdict.int8_drop,
            int8_speedup=verdict.int8_speedup,
            gate=self.options.gate,
            method=self.int8.calibration.method if self.int8 else None,
            n_calibration=len(self.calibration_set.images) if self.calibration_set else 0,
            is_equalised=bool(self.int8 and self.int8.is_equalised),
            notes=(
                *(self.calibration_set.notes() if self.calibration_set else ()),
                *(self.int8.notes if self.int8 else ()),
                *self._doubts(measured),
            ),
            seconds=time.perf_counter() - started,
        )


def _kept_calibration(run: Run, progress: Progress) -> Calibration | None:
    path = run.path(CALIBRATION)
    if not path.exists():
        return None
    try:
        return Calibration.read(path)
    except ExportError as error:
        progress.on_step(f"warning: {error}; ranges are taken anew")
        return None


def _load(chosen: CalibrationSet, n: int, manifest: Manifest) -> Pixels:
    return np.stack([images.load(Path(image.path), manifest.preprocessing) for image in chosen.images[:n]])


def _embed(manifest: Manifest, file: Path) -> None:
    graph = onnx.load(file)
    embed_manifest(graph, manifest)
    with atomic_path(file) as partial:
        onnx.save(graph, partial)
