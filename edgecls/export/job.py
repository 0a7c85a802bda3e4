"""What all steps of one export share: the run, its images, and the folder that its files are made in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from edgecls import metrics
from edgecls.datasets import targets_of
from edgecls.export.data import ExportData
from edgecls.export.graphs.float16_arithmetic import computed_in_float16
from edgecls.export.judge.measure import Logits, answers
from edgecls.export.options import ExportOptions
from edgecls.golden import Golden
from edgecls.manifest import Manifest, Precision
from edgecls.progress import Progress
from edgecls.runs import MODEL_FILES, Run
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions

_WITH_FLOAT16: Final[tuple[Precision, ...]] = ("fp16", "int8")


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        manifest: that the FP32 file gets.
        staged: the folder that the files are made in.
        truth: (n,) label index of every validation image.
    """

    run: Run
    options: ExportOptions
    data: ExportData
    manifest: Manifest
    golden: Golden
    staged: Path
    truth: metrics.Indices
    progress: Progress

    @classmethod
    def of(cls, run: Run, options: ExportOptions, data: ExportData, staged: Path, progress: Progress) -> Job:
        """Read what the run has to say.

        Raises:
            RunError: it has no golden answers, or damaged ones.
        """
        manifest = replace(run.manifest, files={}, precision="fp32", temperature=1.0)
        truth = targets_of(data.validation, manifest.labels)
        return cls(run, options, data, manifest, Golden.of(run), staged, truth, progress)

    def file(self, precision: Precision) -> Path:
        return self.staged / MODEL_FILES[precision]

    def open(self, precision: Precision) -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(self.file(precision), BackendOptions("cpu"))

    def answers(self, precision: Precision, model: Path | bytes) -> Logits:
        """What a model file answers to the validation images, (n, n_classes); n is 0 where there are none."""
        validation = self.data.validation
        if not validation:
            return np.empty((0, len(self.manifest.labels)), np.float32)
        self.progress.on_pass(f"{precision} on validation images", len(validation))
        if precision in _WITH_FLOAT16:  # the file itself would answer by float32 arithmetic on a CPU
            graph = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
            model = computed_in_float16(graph).SerializeToString()
        with OnnxRuntimeBackend(model, BackendOptions("cpu")) as backend:
            return answers(backend, validation, self.manifest.preprocessing, on_images=self.progress.on_images)

    def accuracy(self, logits: Logits) -> float:
        return metrics.accuracy(metrics.answered(logits), self.truth)
