"""Labelled images, and how they are dealt out: each class in proportion, and the same way for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from edgecls.errors import DatasetError, some
from edgecls.images import natural_key

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")


@dataclass(frozen=True)
class LabelledImage:
    path: Path
    label: str


def stratified_split(
    images: Sequence[LabelledImage], fraction: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Draw `fraction` of each class (at least one image, never all of two or more); the rest comes second.

    Both keep the order of `images`.
    """
    if not 0 < fraction < 1:
        raise DatasetError(f"split fraction {fraction}: expected a number above 0 and below 1")
    counts = Counter(image.label for image in images)
    shares = {label: min(max(1, round(n * fraction)), max(1, n - 1)) for label, n in counts.items()}
    drawn = _draw(images, shares, seed)
    return [i for n, i in enumerate(images) if n in drawn], [i for n, i in enumerate(images) if n not in drawn]


def stratified_folds(images: Sequence[LabelledImage], n_folds: int, seed: int) -> list[list[LabelledImage]]:
    """Deal the images of each class out to folds: every image is in one of them, and their sizes differ by one a class.

    Raises:
        DatasetError: a class has fewer images than there are folds.
    """
    counts = Counter(image.label for image in images)
    short = [f"{label} ({counts[label]})" for label in sorted(counts, key=natural_key) if counts[label] < n_folds]
    if short:
        raise DatasetError(
            f"{n_folds} folds need {n_folds} images of every class, one for each fold; there are fewer of "
            f"{some(short)}. Add images, remove the class, or use fewer --folds"
        )
    rng = np.random.default_rng(seed)
    fold_of: dict[int, int] = {}
    for label in sorted(counts, key=natural_key):
        members = [index for index, image in enumerate(images) if image.label == label]
        start = len(fold_of)  # go on where the last class ended, so that whole folds differ by few images too
        fold_of |= {index: (start + n) % n_folds for n, index in enumerate(rng.permutation(members).tolist())}
    return [[image for index, image in enumerate(images) if fold_of[index] == fold] for fold in range(n_folds)]


def stratified_sample(images: Sequence[LabelledImage], n: int, seed: int) -> list[LabelledImage]:
    """Draw `n` images (all, where there are fewer), each class in proportion, in the order of `images`.

    Every class gets its share rounded down; the places left go to the largest remainders, ties by name.
    """
    if n >= len(images):
        return list(images)
    counts = Counter(image.label for image in images)
    exact = {label: n * count / len(images) for label, count in counts.items()}
    shares = {label: int(share) for label, share in exact.items()}
    by_remainder = sorted(counts, key=lambda label: (shares[label] - exact[label], natural_key(label)))
    for label in by_remainder[: n - sum(shares.values())]:
        shares[label] += 1
    drawn = _draw(images, shares, seed)
    return [image for index, image in enumerate(images) if index in drawn]


def _draw(images: Sequence[LabelledImage], shares: Mapping[str, int], seed: int) -> set[int]:
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for index, image in enumerate(images):
        members.setdefault(image.label, []).append(index)
    return {
        index
        for label in sorted(members, key=natural_key)
        for index in rng.permutation(members[label])[: shares[label]].tolist()
    }
