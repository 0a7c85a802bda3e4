"""Figures, against scikit-learn and hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
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
