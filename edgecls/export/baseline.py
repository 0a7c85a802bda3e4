"""What a run's validation images are like, for `predict` and `serve` to compare others with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgecls.drift import Baseline, Histogram
from edgecls.labelled import LabelledImage
from edgecls.progress import Progress
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.pipeline import Source

_MOST: Final = 2000  # images: a share of theirs is right to about a point


def baseline_of(file: Path, validation: Sequence[LabelledImage], progress: Progress) -> Baseline | None:
    """Answer validation images as `predict` does, and keep the histograms; None where there are none.

    Args:
        file: a model file that runs on CPUs.
        validation: beyond `_MOST` of them, every so many are taken.
    """
    if not validation:
        return None
    step = -(-len(validation) // _MOST)
    chosen = validation[::step]
    progress.on_pass("what validation images are like", len(chosen))
    confidences: list[float] = []
    labels: list[str] = []
    brightness, sides = [], []
    with Classifier.open(file, device="cpu") as classifier:
        sources = [Source.of(image.path) for image in chosen]
        for answered in classifier.answers(sources, n_sources=len(sources)):
            for prediction in classifier.predictions(answered, 1):
                if prediction.status == "ok":
                    confidences.append(prediction.probability)
                    labels.append(prediction.label)
            brightness.append(answered.brightness)
            sides.append(answered.sides)
            progress.on_images(len(answered.sources))
        counts = Counter(labels)
        answers = tuple(counts[label] for label in classifier.labels)
    if not labels:
        return None
    return Baseline(
        Histogram.of(np.array(confidences)),
        answers,
        Histogram.of(np.concatenate(brightness)),
        Histogram.of(np.concatenate(sides)),
    )
