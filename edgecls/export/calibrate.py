"""Which images set the ranges of one export, and the ranges of its network on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from edgecls import images
from edgecls.calibration.collectors import DEFAULT_METHOD
from edgecls.calibration.options import METHODS, Method
from edgecls.calibration.ranges import Calibration, calibrate
from edgecls.calibration.sample import CalibrationSet, choose_calibration_set
from edgecls.datasets import ClassNames
from edgecls.errors import ExportError
from edgecls.export.graphs.int8 import QUANTIZED_OPS
from edgecls.export.job import Job
from edgecls.export.judge.gate import noise
from edgecls.export.options import AUTO
from edgecls.images import Pixels
from edgecls.runs import CALIBRATION

N_PROBE: Final = 32  # calibration images by which range methods and layers are compared

# Of the logits' variance. Networks whose top-1 INT8 leaves alone stay below; EfficientNet-B0, whose SiLU makes a few
# values 300 times as large as the most, had 0.98 by mse and 0.005 by entropy, and lost 38 points of top-1 and none.
_NOISY: Final = 0.02


@dataclass(frozen=True)
class Calibrator:
    """The calibration images of one export.

    Attributes:
        kept: the calibration of an earlier export, taken where it is of the same graph, images and method.
    """

    job: Job
    chosen: CalibrationSet
    kept: Calibration | None

    @classmethod
    def of(cls, job: Job) -> Calibrator:
        """Choose the images.

        Raises:
            DatasetError, OptionError, ImageError: as `choose_calibration_set`.
        """
        kept, manifest = _kept(job), job.manifest
        chosen = choose_calibration_set(
            job.options.sample, ClassNames.of(manifest), manifest.preprocessing, job.data.training, job.data.held_out
        )
        for note in chosen.notes():
            job.progress.on_step(f"warning: {note}")
        return cls(job, chosen, kept)

    def probe(self) -> Pixels:
        """A few of the images as the network takes them, (n, h, w, 3) uint8."""
        own = self.job.manifest.preprocessing
        return np.stack([images.load(Path(image.path), own) for image in self.chosen.images[:N_PROBE]])

    def calibrated(self, graph: onnx.ModelProto, method: Method) -> Calibration:
        """The ranges of a float32 graph."""
        progress, n = self.job.progress, len(self.chosen.images)
        progress.on_pass(f"ranges ({method})", n)
        calibration = calibrate(
            graph, self.chosen, self.job.manifest.preprocessing, QUANTIZED_OPS, method,
            kept=self.kept, on_images=progress.on_images,
        )  # fmt: skip
        reused = calibration is self.kept
        source = f"as kept in {CALIBRATION}" if reused else f"from {n} images of {self.chosen.source}, {method}"
        progress.on_step(f"int8: {len(calibration.ranges)} ranges {source}")
        return calibration

    def best(self, graph: onnx.ModelProto, probe: Pixels) -> Calibration:
        """By the method asked for; by `auto`, that with the least noise where the default leaves much."""
        progress, asked = self.job.progress, self.job.options.method
        if asked != AUTO:
            return self.calibrated(graph, asked)
        calibrations = [self.calibrated(graph, DEFAULT_METHOD)]
        noises = [noise(graph, calibrations[0], probe)]
        if noises[0] <= _NOISY:
            return calibrations[0]
        progress.on_step(f"int8: {noises[0]:.0%} of the logits' variance is noise by {DEFAULT_METHOD}: trying others")
        for method in METHODS:
            if method != DEFAULT_METHOD:
                calibrations.append(self.calibrated(graph, method))
                noises.append(noise(graph, calibrations[-1], probe))
        best = int(np.argmin(noises))
        progress.on_step(f"int8: {calibrations[best].method} leaves the least noise, {noises[best]:.1%}")
        return calibrations[best]


def _kept(job: Job) -> Calibration | None:
    path = job.run.path(CALIBRATION)
    if not path.exists():
        return None
    try:
        return Calibration.read(path)
    except ExportError as error:
        job.progress.on_step(f"warning: {error}; ranges are taken anew")
        return None
