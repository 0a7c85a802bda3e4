"""One answer of several answers: votes, ties, agreement and entropy. NumPy only, and no state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

# What the tie-breaking probability may add to a share of votes. Shares that differ by less count as a tie; they are
# float64, which still tells apart the hairs of probabilities that float32 tells apart.
_HAIR: Final = 1e-7


def majority(
    probabilities: Floats, weights: Sequence[float] | None = None, tie_break: int | None = None
) -> NDArray[np.float64]:
    """Every voter gives its vote to its most probable label; a label's score is its share of the votes.

    Where labels have the same share, the one wins that the tie-breaking voter holds more probable (which is its own
    answer, where that is among them); without one, the label of the higher mean probability; then the earlier label.

    Args:
        probabilities: (n_voters, n, n_classes), rows sum to 1.
        weights: of each voter's vote, above 0; None is one each.
        tie_break: index of the voter that breaks ties; None is the mean probability of all.

    Returns:
        (n, n_classes), rows sum to 1. The winner has the highest score. Scores differ from the shares of the votes
        by at most 1e-7, which is what breaks a tie: keep them in float64.
    """
    n_voters, n, n_classes = probabilities.shape
    each = np.ones(n_voters) if weights is None else np.asarray(weights, np.float64)
    shares: NDArray[np.float64] = np.zeros((n, n_classes))
    rows = np.arange(n)
    for voter, answers in enumerate(probabilities.argmax(axis=2)):
        shares[rows, answers] += each[voter] / each.sum()
    breaker = probabilities.mean(axis=0, dtype=np.float64) if tie_break is None else probabilities[tie_break]
    shares += _HAIR * breaker / breaker.sum(axis=1, keepdims=True)
    return shares / (1 + _HAIR)


def soft(probabilities: Floats, weights: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Mean probability over the voters, weighted if need be: (n_voters, n, n_classes) -> (n, n_classes)."""
    shares = np.ones(len(probabilities)) if weights is None else np.asarray(weights, np.float64)
    return np.tensordot(shares / shares.sum(), probabilities.astype(np.float64), axes=1)


def agreement(probabilities: Floats, winners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of the voters whose own answer is the winner: (n_voters, n, n_classes), (n,) -> (n,)."""
    return (probabilities.argmax(axis=2) == winners).mean(axis=0)  # type: ignore[no-any-return]


def entropy(probabilities: Floats) -> NDArray[np.float64]:
    """How undecided a mean of probabilities is, in nats: 0 is sure, log(n_classes) knows nothing. (n, C) -> (n,)."""
    p = probabilities.astype(np.float64)
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)  # type: ignore[no-any-return]
