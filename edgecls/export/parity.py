"""Does an exported file answer as its checkpoint did? Asked of the golden images before anything ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecls import metrics
from edgecls.errors import ParityError
from edgecls.golden import TOLERANCE, Golden
from edgecls.runtime.backend import Backend


@dataclass(frozen=True)
class Parity:
    """Attributes:
    max_logit_difference: largest |difference| of any logit on the golden images.
    tolerance: what it may be.
    agreement: share of golden images with the same top-1 answer, 0 to 1.
    """

    max_logit_difference: float
    tolerance: float
    agreement: float
    n_images: int


def compared(backend: Backend, golden: Golden) -> Parity:
    """How far a file's answers to the golden images are from the checkpoint's."""
    logits = backend.infer(golden.images)
    return Parity(
        max_logit_difference=float(np.abs(logits - golden.logits).max()),
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
