"""Every figure against scikit-learn, SciPy, or a slow form written here."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as reference

from edgecls import metrics
from edgecls.evaluate.answers import MOST_KEPT, Answers
from edgecls.evaluate.scores import scores_of
from edgecls.labelled import LabelledImage
from edgecls.metrics import NO_ANSWER, Figure


def answers(n: int = 400, n_classes: int = 8, seed: int = 0, skill: float = 1.5, labels: int | None = None) -> Answers:
    """Random answers with some skill, as a classifier gives them; `labels` of the classes have images."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels or n_classes, n)
    logits = rng.normal(0, 1, (n, n_classes))
    logits[np.arange(n), truth] += skill
    return of_probabilities(metrics.softmax(logits.astype(np.float32)), truth)


def of_probabilities(probabilities: np.ndarray, truth: np.ndarray) -> Answers:
    n, n_classes = probabilities.shape
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :MOST_KEPT]
    names = tuple(f"class {index}" for index in range(n_classes))
    images = tuple(LabelledImage(Path(f"/{row}.png"), names[label]) for row, label in enumerate(truth))
    rows = np.arange(n)
    return Answers(
        names, images, truth, top, probabilities[rows[:, None], top].astype(np.float32),
        probabilities[rows, truth].astype(np.float32), 1.0, {}, {},
    )  # fmt: skip


def test_the_figures_are_scikit_learns() -> None:
    given = answers()
    scores = scores_of(given)
    truth, predicted = given.truth, given.predicted
    assert scores.n == 400
    assert scores.accuracy.value == pytest.approx(reference.accuracy_score(truth, predicted))
    assert scores.balanced_accuracy.value == pytest.approx(reference.balanced_accuracy_score(truth, predicted))
    precision, recall, f1, _ = reference.precision_recall_fscore_support(truth, predicted, average="macro")
    assert (scores.precision.value, scores.recall.value, scores.f1.value) == pytest.approx((precision, recall, f1))
    for each, (p, r, f, support) in zip(
        scores.classes, zip(*reference.precision_recall_fscore_support(truth, predicted), strict=True), strict=True
    ):
        assert each.precision is not None
        assert each.recall is not None
        assert (each.precision.value, each.recall.value, each.f1, each.support) == pytest.approx((p, r, f, support))
    matrix = reference.confusion_matrix(truth, predicted)
    assert {(row, column): n for row, column, n in scores.confusion} == {
        (row, column): n for (row, column), n in np.ndenumerate(matrix) if n
    }


def test_top_five_and_log_loss_are_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    probabilities = metrics.softmax(rng.normal(0, 2, (300, 9)).astype(np.float32))
    truth, exact = rng.integers(0, 9, 300), probabilities.astype(np.float64)
    scores = scores_of(of_probabilities(probabilities, truth))
    assert scores.top5 is not None
    assert scores.top5.value == pytest.approx(reference.top_k_accuracy_score(truth, probabilities, k=5))
    assert scores.log_loss.value == pytest.approx(
        reference.log_loss(truth, exact / exact.sum(axis=1, keepdims=True), labels=range(9)), rel=1e-5
    )
    assert scores.calibration_error.value == pytest.approx(
        metrics.expected_calibration_error(probabilities, truth), rel=1e-6
    )
    assert scores_of(answers(n_classes=MOST_KEPT)).top5 is None  # it would be 100 %


def test_classes_without_images_count_in_no_mean_but_answers_with_them_do() -> None:
    given = answers(n_classes=8, labels=5, skill=0.5)
    assert (given.predicted >= 5).any()
    scores = scores_of(given)
    present = list(range(5))
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        given.truth, given.predicted, labels=present, average="macro"
    )
    assert (scores.precision.value, scores.recall.value, scores.f1.value) == pytest.approx((precision, recall, f1))
    assert scores.classes[7].recall is None
    assert scores.classes[7].support == 0


def test_an_answer_that_is_no_number_is_wrong_and_of_no_class() -> None:
    given = answers()
    given.top[:10] = NO_ANSWER
    given.probabilities[:10] = 0
    given.of_truth[:10] = 0
    scores = scores_of(given)
    assert scores.accuracy.value == pytest.approx((given.truth[10:] == given.predicted[10:]).sum() / 400)
    assert sum(each.answers for each in scores.classes) == 390


def _inside(figure: Figure) -> bool:
    return figure.low <= figure.value <= figure.high


def test_intervals_hold_the_figure_and_have_the_width_that_new_samples_have() -> None:
    scores = scores_of(answers(seed=0))
    figures = [each for each in scores.figures().values() if each]
    assert all(_inside(each) for each in figures if each is not scores.calibration_error)
    # the calibration error of a resample is larger than that of the sample, as any absolute deviation is
    assert scores.calibration_error.low < scores.calibration_error.high
    repeated = [scores_of(answers(seed=seed)) for seed in range(1, 13)]
    for name in ("accuracy", "precision", "f1", "log-loss"):
        values = [figure.value for each in repeated if (figure := each.figures()[name])]
        measured = scores.figures()[name]
        assert measured
        width = (measured.high - measured.low) / 2 / 1.96
        assert 0.5 < width / np.std(values, ddof=1) < 2


def test_the_threshold_is_the_lowest_probability_above_which_enough_is_right() -> None:
    given = answers(n=2_000, skill=3)
    scores = scores_of(given, target=0.97)
    slow = [
        (float(t), float((given.confidence >= t).mean()), float(given.is_right[given.confidence >= t].mean()))
        for t in np.unique(given.confidence)
    ]
    good = [each for each in slow if each[2] >= 0.97]
    assert scores.threshold is not None
    assert (scores.threshold.threshold, scores.threshold.coverage, scores.threshold.accuracy) == pytest.approx(good[0])
    assert all(any(np.allclose((p.threshold, p.coverage, p.accuracy), s) for s in slow) for p in scores.coverage)
    assert scores_of(answers(skill=0), target=1.0).threshold is None
    assert sum(each.n for each in scores.reliability) == 2_000
    for each in scores.reliability:
        of_bin = (given.confidence >= np.float32(each.low)) & (given.confidence < np.float32(each.high))
        assert each.accuracy == pytest.approx(given.is_right[of_bin].mean(), abs=0.02)


def test_mcnemars_test_is_scipys_binomial_one() -> None:
    for broken, fixed in itertools.product((0, 1, 7, 30), (0, 2, 9, 41)):
        expected = binomtest(broken, broken + fixed).pvalue if broken + fixed else 1.0
        assert metrics.mcnemar_p_value(broken, fixed) == pytest.approx(expected)


def test_holms_correction_is_the_step_down_procedure() -> None:
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 7):
        p_values = rng.uniform(0, 0.2, n).tolist()
        adjusted = metrics.holm(p_values)
        for level in np.linspace(0.001, 0.999, 97):
            rejected = set()
            for rank, index in enumerate(sorted(range(n), key=lambda i: p_values[i])):
                if p_values[index] > level / (n - rank):
                    break
                rejected.add(index)
            assert rejected == {i for i in range(n) if adjusted[i] <= level}
