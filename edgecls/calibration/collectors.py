"""What is kept of a tensor while calibration images stream by, and how a range is made of it.

A collector's memory does not depend on the number of images, nor its result on their order or batching.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from edgecls.calibration.options import Method

# Best or close to it on most networks, while each of the others is far off on several; docs/int8.md has the figures.
DEFAULT_METHOD: Final[Method] = "mse"

Range = tuple[float, float]
Values = NDArray[np.float32]

N_BINS: Final = 8192  # of which at least 2,048 lie between zero and the largest value
PERCENTILE: Final = 99.99  # of the values lie within the range, the rest half above and half below
_LEVELS: Final = 128  # that an int8 tensor can tell apart on each side of zero


class Extremes:
    """The lowest and the highest value of a tensor."""

    def __init__(self) -> None:
        self.lowest, self.highest = math.inf, -math.inf

    def add(self, values: Values) -> None:
        # a nan is neither lower nor higher: np.min hands it on, so that the range shows it
        self.lowest = float(np.minimum(self.lowest, values.min()))
        self.highest = float(np.maximum(self.highest, values.max()))


class Histogram(Extremes):
    """Counts of a tensor's values in `N_BINS` bins over -limit..limit, `limit` being a power of two.

    A value outside doubles the limit, which adds up neighbouring bins: no count is lost or split. That is why two
    passes, one for the limits and one for the counts, are not needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limit = 0.0
        self.counts: NDArray[np.int64] = np.zeros(N_BINS, np.int64)

    def add(self, values: Values) -> None:
        super().add(values)
        peak = max(-self.lowest, self.highest)
        if not math.isfinite(peak) or not peak:  # not finite is an error later; all zeros are in the range anyway
            self.counts[N_BINS // 2] += values.size
            return
        self._widen(2.0 ** (math.floor(math.log2(peak)) + 1))  # the upper end of a histogram is outside
        # OpenCV counts 2.5 times as fast as np.histogram. It wants rows; one column each is the general case.
        column = np.ascontiguousarray(values).reshape(-1, 1)
        counts = cv2.calcHist([column], [0], None, [N_BINS], [-self.limit, self.limit])
        self.counts += np.rint(counts.ravel()).astype(np.int64)

    def _widen(self, limit: float) -> None:
        if not self.limit:
            self.limit = limit
        while self.limit < limit:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(pairs, N_BINS // 4)
            self.limit *= 2

    @property
    def centres(self) -> NDArray[np.float64]:
        """Value in the middle of each bin, (N_BINS,)."""
        width = 2 * self.limit / N_BINS
        return -self.limit + width * (np.arange(N_BINS, dtype=np.float64) + 0.5)

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """Counts by distance from zero, (N_BINS / 2,), up to the last that is not empty."""
        half = N_BINS // 2
        counts = self.counts[half:] + self.counts[:half][::-1]
        return counts[: int(np.flatnonzero(counts)[-1]) + 1]


def _clipped(histogram: Histogram, threshold: float) -> Range:
    # both ends on both sides: all values may lie on one side of zero, and beyond the threshold
    low, high = (max(-threshold, min(threshold, end)) for end in (histogram.lowest, histogram.highest))
    return low, high


def _minmax(histogram: Extremes) -> Range:
    return histogram.lowest, histogram.highest


def _percentile(histogram: Histogram) -> Range:
    """The values within which `PERCENTILE` per cent of all lie, half of the others above and half below."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    outside = (1 - PERCENTILE / 100) / 2
    centres = histogram.centres
    low, high = centres[np.searchsorted(share, outside)], centres[np.searchsorted(share, 1 - outside)]
    # where all values lie in one bin, its centre may be below the lowest of them
    lowest, highest = histogram.lowest, histogram.highest
    return min(max(lowest, float(low)), highest), max(min(highest, float(high)), lowest)


def _entropy(histogram: Histogram) -> Range:
    """The threshold whose 128 levels tell most about the distribution of magnitudes.

    Of all candidates the one with the least Kullback-Leibler divergence between the clipped distribution and its
    quantised form. Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    counts = histogram.magnitudes.astype(np.float64)
    if len(counts) <= _LEVELS:
        return histogram.lowest, histogram.highest
    # ReLU makes half of all values zero: with those counted, cutting off all others would cost next to nothing
    counts[0] = counts[1]
    width = 2 * histogram.limit / N_BINS
    candidates = np.unique(np.linspace(_LEVELS, len(counts), 128).astype(int))
    divergences = [_divergence(counts, n) for n in candidates.tolist()]
    return _clipped(histogram, float(candidates[int(np.argmin(divergences))]) * width)


def _divergence(counts: NDArray[np.float64], n: int) -> float:
    reference = counts[:n].copy()
    reference[-1] += counts[n:].sum()  # what is clipped piles up at the threshold
    level = np.arange(n) * _LEVELS // n
    present = counts[:n] > 0
    totals = np.bincount(level, counts[:n], _LEVELS)
    places = np.bincount(level, present, _LEVELS)
    quantised = np.where(present, (totals / np.maximum(places, 1))[level], 0.0)
    # a bin that only the clipped values fill has no counterpart: a small share, as both must be positive
    quantised = np.where((reference > 0) & (quantised == 0), 1e-3, quantised)
    p, q = reference / reference.sum(), quantised / quantised.sum()
    filled = p > 0
    return float(np.sum(p[filled] * np.log(p[filled] / q[filled])))


def _mse(histogram: Histogram) -> Range:
    """The extremes shrunk by one factor, chosen for the least squared error of 256 levels."""
    # zero is always representable: what is quantised includes it
    low, high = min(histogram.lowest, 0.0), max(histogram.highest, 0.0)
    filled = histogram.counts > 0
    values, counts = histogram.centres[filled], histogram.counts[filled]
    factors = np.linspace(0.2, 1, 81)

    def error(factor: float) -> float:
        step = max(high - low, 1e-12) * factor / 255
        levels = np.clip(np.rint(values / step), np.rint(low * factor / step), np.rint(high * factor / step))
        return float(np.sum(counts * np.square(values - levels * step)))

    best = float(factors[int(np.argmin([error(factor) for factor in factors.tolist()]))])
    return low * best, high * best


COLLECTORS: Final[Mapping[Method, type[Extremes]]] = {
    "minmax": Extremes,
    "percentile": Histogram,
    "entropy": Histogram,
    "mse": Histogram,
}
RANGE_OF: Final[Mapping[Method, Callable[[Any], Range]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
