"""Does an exported file answer as its checkpoint did? Asked of the golden images before anything ships."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgecls import metrics
from edgecls.errors import ParityError, RunError
from edgecls.golden import TOLERANCE, Golden
from edgecls.manifest import Head
from edgecls.runtime.backends.protocol import Backend

# A tree's answer jumps where a feature crosses a threshold, and another kernel's features are a millionth off: now and
# then one image is answered by another leaf. What is wrong with a file is wrong on every image.
_OF_TREES: Final[tuple[Head, ...]] = ("random-forest", "boosting", "xgboost")


@dataclass(frozen=True)
class Parity:
    """How far a file's answers to the golden images are from the checkpoint's.

    Attributes:
        max_logit_difference: largest |difference| of any logit on the golden images; for a classifier of trees, on
            those seven eighths of them that are closest.
        tolerance: what it may be.
        agreement: share of golden images with the same top-1 answer, 0 to 1.
    """

    max_logit_difference: float
    tolerance: float
    agreement: float
    n_images: int


def compared(backend: Backend, golden: Golden) -> Parity:
    """How far a file's answers to the golden images are from the checkpoint's.

    Raises:
        RunError: the golden images or answers are not of a model of this size.
    """
    size_hw, n_classes = backend.manifest.preprocessing.size_hw, len(backend.manifest.labels)
    if golden.images.shape[1:3] != size_hw or golden.logits.shape[1] != n_classes:
        raise RunError(
            f"the golden images are {golden.images.shape[1:3]} pixels of {golden.logits.shape[1]} classes and the "
            f"model takes {size_hw} of {n_classes}: they are of another run; make the run again"
        )
    logits = backend.infer(golden.images)
    by_image = np.abs(logits - golden.logits).max(1)
    if backend.manifest.head in _OF_TREES and np.isfinite(by_image).all():
        by_image = np.sort(by_image)[: math.ceil(len(by_image) * 7 / 8)]
    return Parity(
        max_logit_difference=float(by_image.max()),
        tolerance=TOLERANCE * float(np.abs(golden.logits).max()),
        agreement=metrics.accuracy(logits.argmax(1), golden.logits.argmax(1)),
        n_images=len(logits),
    )


def check_parity(backend: Backend, golden: Golden, file: Path) -> Parity:
    """Compare a file's answers with the checkpoint's.

    Raises:
        ParityError: a logit is further off than the tolerance, or a top-1 answer differs.
    """
    parity = compared(backend, golden)
    # written so that a nan, which is neither above nor below, fails
    if not (parity.max_logit_difference <= parity.tolerance and parity.agreement == 1):
        raise ParityError(
            f"{file}: does not answer as its checkpoint on {parity.n_images} golden images: logits are off by up "
            f"to {parity.max_logit_difference:.2g} (allowed {parity.tolerance:.2g}), top-1 agrees on "
            f"{parity.agreement:.0%}. It was not written; if the checkpoint "
            "was replaced after training, train again, else report this"
        )
    return parity
