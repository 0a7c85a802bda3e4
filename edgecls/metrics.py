"""Answers and labels to figures, and how sure we are of them. NumPy only: it runs on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

NO_ANSWER: Final = -1  # in the place of a label index where a network gave none

_RESAMPLES: Final = 20_000  # of the bootstrap: its own error is then below a hundredth of the interval


def accuracy(predicted: Indices, truth: Indices) -> float:
    """Share of equal entries, 0 to 1; nan for no images. Also the agreement of two models' answers.

    Args:
        predicted, truth: (n,) label indices.
    """
    if predicted.shape != truth.shape or predicted.ndim != 1:
        raise ValueError(f"predicted and truth: expected one shape (n,), got {predicted.shape} and {truth.shape}")
    return float(np.mean(predicted == truth)) if len(truth) else math.nan


def is_finite(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows are answers: all of their numbers are finite. (n, n_classes) -> (n,)."""
    return np.asarray(np.isfinite(logits).all(axis=1))


def answered(logits: NDArray[np.float32]) -> Indices:
    """The label index that each row names; `NO_ANSWER` where a number is not finite: argmax would take the first nan.

    Args:
        logits: (n, n_classes).
    """
    return np.where(is_finite(logits), logits.argmax(1), NO_ANSWER)


def confusion_matrix(predicted: Indices, truth: Indices, n_classes: int) -> NDArray[np.int64]:
    """(n_classes, n_classes) counts: row is the true class, column the answer; images without an answer in none."""
    has_answer = predicted != NO_ANSWER
    flat = np.bincount(truth[has_answer] * n_classes + predicted[has_answer], minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def wilson_interval(accuracy: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share measured on `n` images.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Unlike
    the normal approximation it stays within 0..1 and is right near 100 %, where good classifiers live.
    """
    if not n:
        return 0.0, 1.0
    centre = accuracy + z * z / (2 * n)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


@dataclass(frozen=True)
class Figure:
    """A measured number with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def share(cls, value: float, n: int) -> Figure:
        """A share of n images, with Wilson's interval."""
        return cls(value, *wilson_interval(value, n))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities over the last axis, without overflow; nan for a row with a number that is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, and what is below any number
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PairedDifference:
    """Two models' answers to the same images, compared image by image.

    Two accuracies alone say little: at 1,000 images each has an error of two points, while the difference of two
    models that share their mistakes is known to a fraction of one.

    Attributes:
        n: images compared.
        changed: images with another answer, right or wrong.
        broken, fixed: images that only the reference, and only the other model, got right.
        drop: accuracy of the reference less the other's, a fraction; negative is a gain.
        drop_interval: 95 % bootstrap interval of the drop.
        p_value: exact McNemar test that both are equally accurate (Q. McNemar, 1947; binomial, two-sided).
    """

    n: int
    changed: int
    broken: int
    fixed: int
    drop: float
    drop_interval: tuple[float, float]
    p_value: float


def paired_difference(reference: Indices, other: Indices, truth: Indices, seed: int = 0) -> PairedDifference:
    """Compare two models on the same images.

    Args:
        reference, other, truth: (n,) label indices, n >= 1.
        seed: of the bootstrap.
    """
    if not (reference.shape == other.shape == truth.shape) or not len(truth):
        raise ValueError(f"expected three of one shape (n,), got {reference.shape}, {other.shape}, {truth.shape}")
    n = len(truth)
    broken = int(np.sum((reference == truth) & (other != truth)))
    fixed = int(np.sum((reference != truth) & (other == truth)))
    # the images are of three kinds only, so a bootstrap resample of them is one multinomial draw
    shares = [broken / n, fixed / n, 1 - (broken + fixed) / n]
    resampled = np.random.default_rng(seed).multinomial(n, shares, _RESAMPLES)
    low, high = np.percentile((resampled[:, 0] - resampled[:, 1]) / n, [2.5, 97.5])
    return PairedDifference(
        n,
        int(np.sum(reference != other)),
        broken,
        fixed,
        (broken - fixed) / n,
        (float(low), float(high)),
        mcnemar_p_value(broken, fixed),
    )


def mcnemar_p_value(broken: int, fixed: int) -> float:
    """Exact two-sided McNemar test that two models are equally accurate (Q. McNemar, 1947; binomial).

    Args:
        broken, fixed: images that only the first, and only the second, got right.
    """
    trials, fewer = broken + fixed, min(broken, fixed)
    tail = sum(math.comb(trials, k) for k in range(fewer + 1))
    return min(1.0, 2 * (tail / (1 << trials)))


def class_accuracies(predicted: Indices, truth: Indices, n_classes: int) -> NDArray[np.float64]:
    """Share of each class's images that were answered right, (n_classes,); nan for a class without images."""
    n = np.bincount(truth, minlength=n_classes)
    right = np.bincount(truth[predicted == truth], minlength=n_classes)
    shares: NDArray[np.float64] = np.divide(right, n, out=np.full(n_classes, np.nan), where=n > 0)
    return shares


def expected_calibration_error(probabilities: NDArray[np.float32], truth: Indices, n_bins: int = 15) -> float:
    """How far the probability of the best answer is from the share that is right, on average, 0 to 1.

    nan for no images, and where a probability is not finite: nobody knows how sure such a network is.

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599; bins of equal width.

    Args:
        probabilities: (n, n_classes), each row sums to 1.
        truth: (n,) label indices.
    """
    if not len(truth) or not np.isfinite(probabilities).all():
        return math.nan
    return calibration_error(probabilities.max(1), probabilities.argmax(1) == truth, n_bins)


def calibration_error(confidence: NDArray[np.float32], is_right: NDArray[np.bool_], n_bins: int = 15) -> float:
    """The same of the probabilities of the best answers, and of whether these are right: both (n,), n >= 1."""
    bins = confidence_bins(confidence, n_bins)
    gaps = np.bincount(bins, is_right - confidence, n_bins)  # of each bin: its images times (accuracy - confidence)
    return float(np.abs(gaps).sum() / len(confidence))


def confidence_bins(confidence: NDArray[np.float32], n_bins: int) -> Indices:
    """In which of `n_bins` of equal width from 0 to 1 each probability lies: (n,) -> (n,)."""
    return np.minimum((confidence * n_bins).astype(np.int64), n_bins - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, each raised so that all of them together err once in twenty times at 0.05.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, accuracy) no other point beats: as accurate for less, or more accurate for as much."""
    return [
        not any(
            other_cost <= cost and other >= accuracy and (other_cost, other) != (cost, accuracy)
            for other_cost, other in points
        )
        for cost, accuracy in points
    ]
