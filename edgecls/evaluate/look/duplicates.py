"""Which pictures of a data set are the same: to the byte, to the pixel, or to the eye, also mirrored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgecls.evaluate.look.facts import Examined, Facts
from edgecls.labelled import Split

Kind = Literal["same bytes", "same pixels", "looks the same", "mirrored"]

_RADIUS: Final = 16  # bits of 63 that may differ; what is meant to be found is decided on the pixels
_ROWS: Final = 32  # of the table of distances in memory
_AT_ONCE: Final = 2_048  # pairs that are compared
_BIT_COUNTS: Final = np.array([value.bit_count() for value in range(1 << 16)], np.uint8)
# On small copies: correlation of the grey pixels, of what is left of them without their surroundings, and the largest
# mean difference of the colours. Two photos of the same plain sky agree in the first, and not in the second.
_LEAST_ALIKE: Final = 0.92
_LEAST_DETAIL: Final = 0.7
_MOST_COLOUR: Final = 24.0


@dataclass(frozen=True)
class Pair:
    """Two files that show the same picture.

    Attributes:
        alike: correlation of their small copies, 1 for the same pixels.
    """

    kind: Kind
    path: Path
    other: Path
    label: str
    other_label: str
    split: Split
    other_split: Split
    alike: float

    @property
    def is_leak(self) -> bool:
        """Whether one of them tests or validates what learnt from the other."""
        return self.split != self.other_split

    @property
    def is_conflict(self) -> bool:
        """Whether one picture has two labels."""
        return self.label != self.other_label


class _Groups:
    """Which pictures are known to be the same by now; a group is called by one of its members."""

    def __init__(self, n: int) -> None:
        self._above = list(range(n))

    def of(self, index: int) -> int:
        while self._above[index] != index:
            self._above[index] = self._above[self._above[index]]
            index = self._above[index]
        return index

    def join(self, one: int, other: int) -> bool:
        """Whether they were in two groups before."""
        one, other = self.of(one), self.of(other)
        self._above[max(one, other)] = min(one, other)
        return one != other


def pairs_of(examined: Examined) -> tuple[Pair, ...]:
    """Pairs that connect all copies of a picture: n - 1 of them where there are n.

    Those of the same bytes come first, then of the same pixels, then those that look the same, the most alike first.
    """
    facts, groups = examined.facts, _Groups(len(examined.facts))
    pairs: list[Pair] = []
    exact: tuple[tuple[Kind, list[bytes]], ...] = (
        ("same bytes", [each.digest for each in facts]),
        ("same pixels", [each.pixels for each in facts]),
    )
    for kind, keys in exact:
        first: dict[bytes, int] = {}
        for index, key in enumerate(keys):
            one = first.setdefault(key, index)
            if one != index and groups.join(one, index):
                pairs.append(_pair(kind, facts, one, index, 1.0))
    kept = np.array([index for index in range(len(facts)) if groups.of(index) == index], np.int64)
    near = sorted(_near(facts, examined.small, kept, groups), key=lambda pair: -pair.alike)
    return (*pairs, *near)


def n_leaked(pairs: Sequence[Pair]) -> int:
    """How many pictures of val and test have a copy in train."""
    paths = {path: index for index, path in enumerate({p: None for pair in pairs for p in (pair.path, pair.other)})}
    splits = {
        path: split for pair in pairs for path, split in ((pair.path, pair.split), (pair.other, pair.other_split))
    }
    groups = _Groups(len(paths))
    for pair in pairs:
        groups.join(paths[pair.path], paths[pair.other])
    trained = {groups.of(paths[path]) for path, split in splits.items() if split == "train"}
    return sum(split != "train" and groups.of(paths[path]) in trained for path, split in splits.items())


def _pair(kind: Kind, facts: Sequence[Facts], one: int, other: int, alike: float) -> Pair:
    a, b = facts[one].listed, facts[other].listed
    return Pair(kind, a.image.path, b.image.path, a.image.label, b.image.label, a.split, b.split, alike)


def _near(facts: Sequence[Facts], small: NDArray[np.uint8], kept: NDArray[np.int64], groups: _Groups) -> Iterator[Pair]:
    hashes = np.array([facts[index].hash for index in kept], np.uint64)
    flipped = np.array([facts[index].mirrored for index in kept], np.uint64)
    kinds: tuple[tuple[Kind, NDArray[np.uint64]], ...] = (("looks the same", hashes), ("mirrored", flipped))
    for kind, others in kinds:
        for candidates in close_pairs(hashes, others, _RADIUS):
            for start in range(0, len(candidates), _AT_ONCE):
                some = kept[candidates[start : start + _AT_ONCE]]
                # a film has thousands of pictures that are all alike: what is known to be is not compared again
                some = some[[groups.of(one) != groups.of(other) for one, other in some.tolist()]]
                one, other = small[some[:, 0]], small[some[:, 1]]
                alike = _alike(one, other[:, :, ::-1] if kind == "mirrored" else other)
                for index in np.flatnonzero(alike).tolist():
                    first, second = some[index].tolist()
                    if groups.join(first, second):
                        yield _pair(kind, facts, first, second, float(alike[index]))


def close_pairs(hashes: NDArray[np.uint64], others: NDArray[np.uint64], radius: int) -> Iterator[NDArray[np.int64]]:
    """The rows i < j at which `hashes[i]` and `others[j]` differ in `radius` bits at most, (k, 2) at a time.

    Args:
        hashes, others: (n,).
    """
    for start in range(0, len(hashes), _ROWS):
        distances = bit_counts(hashes[start : start + _ROWS, None] ^ others[None, start:])
        found = np.argwhere(distances <= radius)
        yield found[found[:, 0] < found[:, 1]] + start


def bit_counts(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many bits of each number are set; of the same shape."""
    count = getattr(np, "bitwise_count", None)  # from NumPy 2 on
    if count is not None:
        counted: NDArray[np.uint8] = count(values)
        return counted
    parts = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    summed: NDArray[np.uint8] = _BIT_COUNTS[parts].sum(axis=-1, dtype=np.uint8)
    return summed


def _alike(ones: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How alike small copies are, (k,); 0 for those that do not show the same picture."""
    a, b = ones.astype(np.float32), others.astype(np.float32)
    colour = np.abs(a - b).mean(axis=(1, 2, 3))
    grey_a, grey_b = a.mean(axis=3), b.mean(axis=3)
    alike, detail = _correlation(grey_a, grey_b), _correlation(_detail(grey_a), _detail(grey_b))
    is_same = (colour <= _MOST_COLOUR) & (alike >= _LEAST_ALIKE) & (detail >= _LEAST_DETAIL)
    return np.where(is_same, alike, 0).astype(np.float32)


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Of each (h, w) of (k, h, w): (k,)."""
    a, b = a - a.mean(axis=(1, 2), keepdims=True), b - b.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    correlation: NDArray[Any] = (a * b).sum(axis=(1, 2)) / np.where(norm > 0, norm, np.inf)
    return correlation


def _detail(grey: NDArray[Any]) -> NDArray[Any]:
    """What each pixel has beyond its four neighbours."""
    around = (grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]) / 4
    difference: NDArray[Any] = grey[:, 1:-1, 1:-1] - around
    return difference
