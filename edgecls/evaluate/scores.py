"""Answers to figures, each with its 95 % interval; the definitions are those of scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.metrics import precision_recall_fscore_support

from edgecls import metrics
from edgecls.evaluate.answers import Answers
from edgecls.metrics import NO_ANSWER, Figure, Indices

N_BINS: Final = 15  # of the calibration error, as in `metrics.calibration_error`
_RESAMPLES: Final = 1_000  # of the bootstrap
_AT_ONCE: Final = 50  # resamples in memory
_SMALLEST: Final = 1e-12  # probability that a logarithm is taken of
_LEVELS: Final = (2.5, 97.5)
_N_POINTS: Final = 200  # of the curve of accuracy over coverage


@dataclass(frozen=True)
class ClassScores:
    """One class.

    Attributes:
        support: images of it.
        answers: images that were answered with it.
        precision: of these the share that is right; None where there are none.
        recall: of its images the share that is answered right; None where there are none.
    """

    label: str
    support: int
    answers: int
    precision: Figure | None
    recall: Figure | None
    f1: float


@dataclass(frozen=True)
class Bin:
    """The images whose answer has a probability from `low` to `high`: how sure it says it is, and how often right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class CoveragePoint:
    """What is answered, and how well, where answers below a probability are left out."""

    threshold: float
    coverage: float
    accuracy: float


@dataclass(frozen=True)
class Scores:
    """Every figure of one classifier on labelled images.

    Attributes:
        n: images.
        top5: None where there are five classes or less.
        balanced_accuracy, precision, recall, f1: means over the classes that have images, as shares.
        log_loss: mean negative logarithm of the probability of the true label, in nats.
        calibration_error: expected calibration error, 0 to 1.
        confusion: images by true and answered label index, `NO_ANSWER` included, the most frequent first.
        target, threshold: share of answers that is to be right, and the lowest probability above which it is, as a
            point of the curve; None where no threshold gives it.
    """

    n: int
    accuracy: Figure
    top5: Figure | None
    balanced_accuracy: Figure
    precision: Figure
    recall: Figure
    f1: Figure
    log_loss: Figure
    calibration_error: Figure
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, int, int], ...]
    reliability: tuple[Bin, ...]
    coverage: tuple[CoveragePoint, ...]
    target: float
    threshold: CoveragePoint | None

    def figures(self) -> Mapping[str, Figure | None]:
        """By the names of `--fail-if`."""
        return {
            "accuracy": self.accuracy, "top5": self.top5, "balanced-accuracy": self.balanced_accuracy,
            "precision": self.precision, "recall": self.recall, "f1": self.f1, "log-loss": self.log_loss,
            "calibration-error": self.calibration_error,
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def scores_of(answers: Answers, target: float = 0.99) -> Scores:
    """Measure what a classifier answered.

    Args:
        target: share of answers that is to be right, for the threshold.
    """
    truth, predicted, n = answers.truth, answers.predicted, len(answers.truth)
    is_right, confidence = answers.is_right, answers.confidence
    cells, counts = np.unique(np.column_stack([truth, predicted]), axis=0, return_counts=True)
    precision, recall, f1 = _macro_intervals(cells, counts)
    loss = -np.log(np.maximum(answers.of_truth.astype(np.float64), _SMALLEST))
    has_top5 = len(answers.labels) > answers.top.shape[1]
    most = np.argsort(-counts, kind="stable")
    coverage, threshold = _coverage(confidence, is_right, target)
    return Scores(
        n=n,
        accuracy=Figure.share(metrics.accuracy(predicted, truth), n),
        top5=Figure.share(float((answers.top == truth[:, None]).any(axis=1).mean()), n) if has_top5 else None,
        balanced_accuracy=recall,  # its definition: the mean recall of the classes that have images
        precision=precision,
        recall=recall,
        f1=f1,
        log_loss=_bootstrapped(loss.mean(), n, lambda rows: loss[rows].mean()),
        calibration_error=_bootstrapped(
            metrics.calibration_error(confidence, is_right),
            n,
            lambda rows: metrics.calibration_error(confidence[rows], is_right[rows]),
        ),
        classes=_class_scores(answers),
        confusion=tuple((int(cells[i, 0]), int(cells[i, 1]), int(counts[i])) for i in most),
        reliability=_reliability(confidence, is_right),
        coverage=coverage,
        target=target,
        threshold=threshold,
    )


def _class_scores(answers: Answers) -> tuple[ClassScores, ...]:
    labels = np.arange(len(answers.labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        answers.truth, answers.predicted, labels=labels, zero_division=0
    )
    answered = np.bincount(answers.predicted[answers.predicted != NO_ANSWER], minlength=len(labels))
    return tuple(
        ClassScores(
            label,
            int(support[i]),
            int(answered[i]),
            Figure.share(float(precision[i]), int(answered[i])) if answered[i] else None,
            Figure.share(float(recall[i]), int(support[i])) if support[i] else None,
            float(f1[i]),
        )
        for i, label in enumerate(answers.labels)
    )


# --- Intervals -------------------------------------------------------------------------------------------------


def _bootstrapped(value: float, n: int, of_rows: Callable[[Indices], float]) -> Figure:
    """With the percentile interval over images drawn with replacement."""
    rng = np.random.default_rng(0)
    drawn = [of_rows(rng.integers(0, n, n)) for _ in range(_RESAMPLES)]
    return Figure(float(value), *_percentiles(np.array(drawn)))


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, _LEVELS)
    return float(low), float(high)


def _macro_intervals(cells: Indices, counts: Indices) -> tuple[Figure, Figure, Figure]:
    """Precision, recall and F1 as means over the classes that have images, with bootstrap intervals.

    Images with the same true label and answer are alike, so a resample is one multinomial draw over the cells.

    Args:
        cells: (k, 2) true and answered label index of the cells of the confusion matrix that are not empty.
        counts: (k,) images in each.
    """
    present, row = np.unique(cells[:, 0], return_inverse=True)
    position = np.searchsorted(present, cells[:, 1])
    is_known = (position < len(present)) & (present[np.minimum(position, len(present) - 1)] == cells[:, 1])
    shape, k = (len(cells), len(present)), np.arange(len(cells))
    to_row = csr_matrix((np.ones(len(cells)), (k, row)), shape)
    to_column = csr_matrix((is_known.astype(float), (k, np.where(is_known, position, 0))), shape)
    is_diagonal = (cells[:, 0] == cells[:, 1]).astype(float)
    to_diagonal = csr_matrix((is_diagonal, (k, row)), shape)

    def macro(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        """(r, k) images in each cell -> (r, 3)."""
        hits, of_class, answered = (drawn @ each for each in (to_diagonal, to_row, to_column))
        n_present = np.maximum((of_class > 0).sum(axis=1), 1)  # a class that no image was drawn of says nothing
        means = [
            np.where((of_class > 0) & (below > 0), above / np.maximum(below, 1), 0).sum(axis=1) / n_present
            for above, below in ((hits, answered), (hits, of_class), (2 * hits, of_class + answered))
        ]
        return np.column_stack(means)

    rng, n = np.random.default_rng(0), int(counts.sum())
    drawn = [macro(rng.multinomial(n, counts / n, _AT_ONCE)) for _ in range(_RESAMPLES // _AT_ONCE)]
    (values,), resampled = macro(counts[None]), np.concatenate(drawn)
    precision, recall, f1 = (
        Figure(float(value), *_percentiles(resampled[:, index])) for index, value in enumerate(values)
    )
    return precision, recall, f1


# --- How sure --------------------------------------------------------------------------------------------------


def _reliability(confidence: NDArray[np.float32], is_right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    bins = metrics.confidence_bins(confidence, N_BINS)
    n = np.bincount(bins, minlength=N_BINS)
    sure, right = np.bincount(bins, confidence, N_BINS), np.bincount(bins, is_right, N_BINS)
    return tuple(
        Bin(i / N_BINS, (i + 1) / N_BINS, int(n[i]), float(sure[i] / n[i]), float(right[i] / n[i]))
        for i in range(N_BINS)
        if n[i]
    )


def _coverage(
    confidence: NDArray[np.float32], is_right: NDArray[np.bool_], target: float
) -> tuple[tuple[CoveragePoint, ...], CoveragePoint | None]:
    """The curve of accuracy over coverage, thinned out, and the point with the most answers that keeps the target."""
    n = len(confidence)
    order = np.argsort(-confidence, kind="stable")
    sure, shares = confidence[order], np.cumsum(is_right[order]) / np.arange(1, n + 1)
    ends = np.flatnonzero(np.diff(sure, append=-1))  # a threshold cannot tell equal probabilities apart

    def point(end: int) -> CoveragePoint:
        return CoveragePoint(float(sure[end]), (end + 1) / n, float(shares[end]))

    good = ends[shares[ends] >= target]
    step = max(1, math.ceil(len(ends) / _N_POINTS))
    shown = sorted({*ends[::step].tolist(), int(ends[-1])})
    return tuple(map(point, shown)), point(int(good[-1])) if len(good) else None
