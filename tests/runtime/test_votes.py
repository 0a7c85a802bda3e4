"""Votes against a plain, slow reference, on every shape of tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecls.runtime.votes import agreement, entropy, majority, soft

Table = list[list[int]]  # one image: a row a voter, a whole number a label, which stand for probabilities


def plain_winner(table: Table, weights: Sequence[int], tie_break: int | None) -> int:
    """The rule of the documentation, in exact arithmetic and loops."""
    rows = [[Fraction(value, sum(row)) for value in row] for row in table]
    votes = [0] * len(rows[0])
    for row, weight in zip(rows, weights, strict=True):
        votes[row.index(max(row))] += weight
    tied = [label for label, count in enumerate(votes) if count == max(votes)]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    decides = mean if tie_break is None else rows[tie_break]
    return max(tied, key=lambda label: (decides[label], -label))


@st.composite
def elections(draw: st.DrawFn) -> tuple[Table, list[int], int | None]:
    n_voters, n_labels = draw(st.integers(1, 7)), draw(st.integers(2, 6))
    row = st.lists(st.integers(0, 4), min_size=n_labels, max_size=n_labels).filter(any)
    table = draw(st.lists(row, min_size=n_voters, max_size=n_voters))
    weights = draw(st.lists(st.integers(1, 3), min_size=n_voters, max_size=n_voters))
    return table, weights, draw(st.one_of(st.none(), st.integers(0, n_voters - 1)))


def probabilities_of(*images: Table) -> NDArray[np.float64]:
    """(n_voters, n, n_classes)."""
    counts = np.array(images, np.float64).transpose(1, 0, 2)
    return counts / counts.sum(axis=2, keepdims=True)


@given(elections())
def test_the_majority_is_that_of_a_plain_count(election: tuple[Table, list[int], int | None]) -> None:
    table, weights, tie_break = election
    scores = majority(probabilities_of(table), weights, tie_break)
    winner = int(scores[0].argmax())
    expected = plain_winner(table, weights, tie_break)
    if winner != expected:  # means that are equal as fractions may differ by a rounding as floats
        rows = [[Fraction(value, sum(row)) for value in row] for row in table]
        mean = [float(sum(column)) for column in zip(*rows, strict=True)]
        assert tie_break is None
        assert mean[winner] == pytest.approx(mean[expected], abs=1e-12)
    assert scores.sum() == pytest.approx(1)


@given(st.lists(elections(), min_size=1, max_size=1), st.integers(1, 5))
def test_images_of_a_batch_do_not_see_one_another(chosen: list[tuple[Table, list[int], int | None]], n: int) -> None:
    ((table, weights, tie_break),) = chosen
    alone = majority(probabilities_of(table), weights, tie_break)
    together = majority(probabilities_of(*[table] * n), weights, tie_break)
    assert np.array_equal(together, np.repeat(alone, n, axis=0))


SURE_A, SURE_B, SURE_C = [8, 1, 1], [1, 8, 1], [1, 1, 8]
TIES = [
    pytest.param([SURE_A, SURE_B], 0, 0, id="two voters, to the first"),
    pytest.param([SURE_A, SURE_B], 1, 1, id="two voters, to the second"),
    pytest.param([[6, 3, 1], [2, 7, 1]], None, 1, id="two voters, to the higher mean probability"),
    pytest.param([SURE_A, SURE_B, SURE_C], 2, 2, id="three voters, three answers"),
    pytest.param([[5, 4, 1], [1, 6, 3], [2, 2, 6]], None, 1, id="three answers, to the mean, where no one is sure"),
    pytest.param([SURE_A, SURE_A, SURE_B, SURE_B, [1, 3, 6]], 4, 1, id="2:2:1, the breaker is for neither"),
    pytest.param([SURE_A, SURE_A, SURE_B, SURE_B], 2, 1, id="2:2, to a breaker among them"),
    pytest.param([SURE_A, SURE_A, SURE_B], 2, 0, id="no tie: the breaker has no say"),
    pytest.param([[5, 5, 0], [5, 5, 0]], None, 0, id="equal in everything: the earlier label"),
    pytest.param([SURE_B, SURE_A], None, 0, id="votes and means equal: the earlier label"),
]


@pytest.mark.parametrize(("table", "tie_break", "winner"), TIES)
def test_every_shape_of_tie(table: Table, tie_break: int | None, winner: int) -> None:
    assert plain_winner(table, [1] * len(table), tie_break) == winner
    assert int(majority(probabilities_of(table), None, tie_break)[0].argmax()) == winner


def test_a_tie_of_weights_is_a_tie_and_a_hair_more_weight_is_not() -> None:
    table = [SURE_A, SURE_B, SURE_B]
    assert majority(probabilities_of(table), [2, 1, 1], 0)[0].argmax() == 0
    assert majority(probabilities_of(table), [2, 1, 1.0001], 0)[0].argmax() == 1


@given(elections())
def test_the_soft_vote_is_the_mean(election: tuple[Table, list[int], int | None]) -> None:
    table, weights, _ = election
    rows = [[value / sum(row) for value in row] for row in table]
    expected = [
        sum(weight * row[label] for weight, row in zip(weights, rows, strict=True)) / sum(weights)
        for label in range(len(table[0]))
    ]
    assert soft(probabilities_of(table), weights)[0] == pytest.approx(expected)


def test_agreement_and_entropy_are_what_their_names_say() -> None:
    probabilities = probabilities_of([SURE_A, SURE_A, SURE_B], [SURE_C, SURE_C, SURE_C])
    assert agreement(probabilities, np.array([0, 2])).tolist() == pytest.approx([2 / 3, 1])
    assert entropy(np.array([[1.0, 0.0], [0.5, 0.5]])).tolist() == pytest.approx([0, math.log(2)])
