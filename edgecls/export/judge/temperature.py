"""How sure a model claims to be, set right: one number that its logits are divided by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from edgecls import metrics

_LARGEST: Final = 10.0  # and a tenth is the smallest: beyond, the logits are broken rather than too sure
# Where few images or few mistakes leave the temperature open (no mistake at all asks for zero), it stays near one: the
# logarithm is taken to lie within a factor of two with 68 %. From some hundred images on this does not matter.
_PRIOR_SD: Final = math.log(2)


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by, and how far that mends their claims.

    Attributes:
        temperature: what the logits are divided by; 1 leaves them.
        ece_before, ece_after: expected calibration error without and with it, 0 to 1. After is measured on images that
            the temperature was not fitted on: it is fitted on either half and judged on the other. None where nothing
            was fitted.
    """

    temperature: float = 1.0
    ece_before: float | None = None
    ece_after: float | None = None


def fit_temperature(logits: NDArray[np.float32], truth: metrics.Indices) -> Temperature:
    """The temperature with the highest likelihood of the true labels, a weak prior keeping it near one.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    Args:
        logits: (n, n_classes).
        truth: (n,) label indices.

    Returns:
        1 and no errors where there are less than two images, or an answer is not finite.
    """
    if len(truth) < 2 or not np.isfinite(logits).all():
        return Temperature()
    halves = np.arange(len(truth)) % 2 == 0
    after = np.empty_like(logits)
    for fitted_on in (halves, ~halves):
        after[~fitted_on] = metrics.softmax(logits[~fitted_on] / _best(logits[fitted_on], truth[fitted_on]))
    return Temperature(
        _best(logits, truth),
        metrics.expected_calibration_error(metrics.softmax(logits), truth),
        metrics.expected_calibration_error(after, truth),
    )


def _best(logits: NDArray[np.float32], truth: metrics.Indices) -> float:
    exact = logits.astype(np.float64)
    of_truth = exact[np.arange(len(truth)), truth]

    def unlikelihood(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        scaled = exact * scale
        top = scaled.max(1)
        log_sum = top + np.log(np.exp(scaled - top[:, None]).sum(1))
        return float(np.sum(log_sum - of_truth * scale)) + 0.5 * (log_temperature / _PRIOR_SD) ** 2

    bound = math.log(_LARGEST)
    found = minimize_scalar(unlikelihood, bounds=(-bound, bound), method="bounded")
    return math.exp(float(found.x))
