"""Figures, against scikit-learn and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score
from sklearn.metrics import confusion_matrix as reference_confusion

from edgecls import metrics


def test_accuracy_and_confusion_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    assert metrics.accuracy(predicted, truth) == accuracy_score(truth, predicted)
    expected = reference_confusion(truth, predicted, labels=range(5))
    assert np.array_equal(metrics.confusion_matrix(predicted, truth, 5), expected)


def test_accuracy_of_nothing_is_not_a_number() -> None:
    assert math.isnan(metrics.accuracy(np.empty(0, np.int64), np.empty(0, np.int64)))


def test_accuracy_refuses_arrays_of_two_lengths() -> None:
    with pytest.raises(ValueError, match="expected one shape"):
        metrics.accuracy(np.zeros(3, np.int64), np.zeros(4, np.int64))


def test_the_wilson_interval_is_that_of_the_textbook() -> None:
    # R: binom::binom.wilson(81, 100)
    low, high = metrics.wilson_interval(0.81, 100)
    assert low == pytest.approx(0.7222, abs=2e-4)
    assert high == pytest.approx(0.8749, abs=2e-4)
    assert metrics.wilson_interval(1.0, 50)[1] == 1.0
    assert metrics.wilson_interval(math.nan, 0) == (0.0, 1.0)


def test_softmax_survives_large_logits() -> None:
    probabilities = metrics.softmax(np.array([[1e4, 1e4, -1e4]], np.float32))
    assert probabilities.tolist() == [[0.5, 0.5, 0.0]]


def answers_with(broken: int, fixed: int, both_right: int, both_wrong: int) -> tuple[metrics.Indices, ...]:
    n = broken + fixed + both_right + both_wrong
    truth = np.zeros(n, np.int64)
    reference, other = np.zeros(n, np.int64), np.zeros(n, np.int64)
    other[:broken] = 1
    reference[broken : broken + fixed] = 1
    reference[n - both_wrong :] = 1
    other[n - both_wrong :] = 2  # wrong in another way: changed, but neither broken nor fixed
    return reference, other, truth


@pytest.mark.parametrize(("broken", "fixed"), [(0, 0), (1, 0), (5, 5), (9, 1), (30, 12), (400, 380)])
def test_the_p_value_is_that_of_the_exact_binomial_test(broken: int, fixed: int) -> None:
    difference = metrics.paired_difference(*answers_with(broken, fixed, 900, 50))
    expected = binomtest(broken, broken + fixed).pvalue if broken + fixed else 1.0
    assert difference.p_value == pytest.approx(expected)
    assert (difference.broken, difference.fixed) == (broken, fixed)
    assert difference.changed == broken + fixed + 50
    assert difference.drop == pytest.approx((broken - fixed) / difference.n)


def test_the_bootstrap_interval_is_that_of_resampled_images() -> None:
    reference, other, truth = answers_with(30, 12, 900, 58)
    lost = (reference == truth).astype(float) - (other == truth)
    rng = np.random.default_rng(1)
    drops = [lost[rng.integers(len(lost), size=len(lost))].mean() for _ in range(4000)]
    assert metrics.paired_difference(reference, other, truth).drop_interval == pytest.approx(
        np.percentile(drops, [2.5, 97.5]), abs=2e-3
    )


def test_a_paired_difference_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match="expected three of one shape"):
        metrics.paired_difference(np.zeros(3, np.int64), np.zeros(2, np.int64), np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="expected three of one shape"):
        metrics.paired_difference(*[np.zeros(0, np.int64)] * 3)


def test_a_point_is_on_the_front_unless_another_is_as_good_for_less() -> None:
    points = [(1, 0.5), (2, 0.5), (2, 0.7), (3, 0.6), (2, 0.7)]
    assert metrics.on_front(points) == [True, False, True, False, True]  # equal points do not beat one another


def test_class_accuracies_are_each_classes_own() -> None:
    truth, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0])
    assert metrics.class_accuracies(predicted, truth, 3) == pytest.approx([0.5, 2 / 3, np.nan], nan_ok=True)


def test_the_calibration_error_is_zero_for_honest_and_the_gap_for_boastful_answers() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 40_000).astype(np.float32)
    probabilities = np.stack([confidence, 1 - confidence], 1)
    honest = (rng.uniform(size=len(confidence)) > confidence).astype(np.int64)
    assert metrics.expected_calibration_error(probabilities, honest) < 0.01
    sure = np.tile(np.array([[0.9, 0.1]], np.float32), (1000, 1))
    halves = (np.arange(1000) % 2).astype(np.int64)
    assert metrics.expected_calibration_error(sure, halves) == pytest.approx(0.4, abs=1e-6)
    certain = np.tile(np.array([[1.0, 0.0]], np.float32), (10, 1))
    assert metrics.expected_calibration_error(certain, np.zeros(10, np.int64)) == 0
