"""Does an exported file answer as its checkpoint did? Asked of the golden images before anything ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls import metrics
from edgecls.errors import ParityError, RunError
from edgecls.images import Pixels
from edgecls.runs import GOLDEN, Run
from edgecls.runtime.backend import Backend

# Of the largest golden logit: float32 kernels of two engines differ by about 1e-6 of it, a swapped channel or a
# retyped mean by more than 1e-1.
TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Golden:
    """The reference answers of a run.

    Attributes:
        images: (k, h, w, 3) uint8, RGB.
        logits: (k, n_classes) float32, the checkpoint's.
        validation_answers: (n,) int64, the checkpoint's label index for every validation image.
    """

    images: Pixels
    logits: NDArray[np.float32]
    validation_answers: NDArray[np.int64]

    @classmethod
    def of(cls, run: Run) -> Golden:
        """Read a run's golden answers.

        Raises:
            RunError: missing or damaged.
        """
        try:
            with np.load(run.path(GOLDEN)) as arrays:
                return cls(arrays["images"], arrays["logits"], arrays["validation_answers"])
        except (OSError, KeyError, ValueError) as error:
            raise RunError(
                f"{run.path(GOLDEN)}: no readable golden answers ({type(error).__name__}); train the run again"
            ) from error


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


def check_parity(backend: Backend, golden: Golden, file: Path) -> Parity:
    """Compare a file's answers with the checkpoint's.

    Raises:
        ParityError: a logit is further off than the tolerance, or a top-1 answer differs.
    """
    logits = backend.infer(golden.images)
    parity = Parity(
        max_logit_difference=float(np.abs(logits - golden.logits).max()),
        tolerance=TOLERANCE * float(np.abs(golden.logits).max()),
        agreement=metrics.accuracy(logits.argmax(1), golden.logits.argmax(1)),
        n_images=len(logits),
    )
    # written so that a nan, which is neither above nor below, fails
    if not (parity.max_logit_difference <= parity.tolerance and parity.agreement == 1):
        raise ParityError(
            f"{file}: does not answer as its checkpoint on {parity.n_images} golden images: logits are off by up "
            f"to {parity.max_logit_difference:.2g} (allowed {parity.tolerance:.2g}), top-1 agrees on "
            f"{parity.agreement:.0%}. It was not written; if the checkpoint "
            "was replaced after training, train again, else report this"
        )
    return parity
