"""Which classes are taken for which: a matrix for up to 40 classes, above that the most confused pairs and a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from edgecls.evaluate.page.pictures import webp
from edgecls.images import Pixels

MOST_IN_MATRIX: Final = 40  # classes whose matrix is a table
_MOST_PAIRS: Final = 12  # beside the table, which has them all
_MOST_PAIRS_ALONE: Final = 40
_MOST_CLUSTERED: Final = 3_000  # the time of the clustering goes with the square
_MAP_SIDE: Final = 600  # pixels


@dataclass(frozen=True)
class Cell:
    """Images of one class that were answered with another (or the same).

    Attributes:
        share: of the images of the true class.
    """

    truth: int
    answer: int
    n: int
    share: float


@dataclass(frozen=True)
class ConfusionView:
    """What a page shows of a confusion matrix.

    Attributes:
        rows: for up to 40 classes, every cell by row; else empty.
        pairs: the most confused pairs, the most frequent first.
        map: above 40 classes a picture of the whole matrix, similar classes side by side; a `data:` address.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    pairs: tuple[Cell, ...]
    map: str


def confusion_view(labels: Sequence[str], counts: Mapping[tuple[int, int], int]) -> ConfusionView:
    """Choose what can be read at this number of classes.

    Args:
        counts: images by true and answered label index; an answer of -1 is none.
    """
    n_of = np.zeros(len(labels), np.int64)
    for (truth, _), n in counts.items():
        n_of[truth] += n

    def cell(truth: int, answer: int) -> Cell:
        n = counts.get((truth, answer), 0)
        return Cell(truth, answer, n, n / max(int(n_of[truth]), 1))

    everyone = range(len(labels))
    is_small = len(labels) <= MOST_IN_MATRIX
    rows = tuple(tuple(cell(truth, answer) for answer in everyone) for truth in everyone) if is_small else ()
    mistakes = sorted((key for key in counts if key[0] != key[1] and key[1] >= 0), key=lambda key: -counts[key])
    pairs = tuple(cell(*key) for key in mistakes[: _MOST_PAIRS if is_small else _MOST_PAIRS_ALONE])
    return ConfusionView(tuple(labels), rows, pairs, "" if is_small else _map(len(labels), counts, n_of))


def _map(n_classes: int, counts: Mapping[tuple[int, int], int], n_of: NDArray[np.int64]) -> str:
    if n_classes > _MOST_CLUSTERED:
        return ""
    shares = np.zeros((n_classes, n_classes))
    for (truth, answer), n in counts.items():
        if answer >= 0:
            shares[truth, answer] = n / max(int(n_of[truth]), 1)
    order = _order(shares)
    picture = _drawn(shares[np.ix_(order, order)])
    return webp(picture, is_exact=True)


def _order(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Classes that are taken for one another side by side, by average linkage."""
    alike = (shares + shares.T) / 2
    np.fill_diagonal(alike, 0)
    distance = 1 - alike
    np.fill_diagonal(distance, 0)
    order: NDArray[np.int64] = leaves_list(linkage(squareform(distance, checks=False), "average"))
    return order


def _drawn(shares: NDArray[np.float64]) -> Pixels:
    """Blue for right answers, orange for wrong ones, on white; each class is a pixel at least."""
    strength = np.sqrt(np.clip(shares, 0, 1))[..., None]
    colours = np.where(np.eye(len(shares), dtype=bool)[..., None], (11.0, 95, 165), (214.0, 92, 0))
    picture = np.rint(255 * (1 - strength) + colours * strength).astype(np.uint8)
    scale = max(1, _MAP_SIDE // len(shares))
    large: Pixels = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    return large
