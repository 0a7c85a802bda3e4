"""Where a classifier is worse than on average: by size, brightness, folder, how sure it is, and columns of the CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from edgecls import images, metrics
from edgecls.datasets import read_label_rows
from edgecls.decoding.header import read_header
from edgecls.errors import ImageError
from edgecls.evaluate.answers import Answers
from edgecls.images import natural_key
from edgecls.labelled import LabelledImage
from edgecls.metrics import Figure
from edgecls.prefetch import n_cores, prefetch

_MOST_VALUES: Final = 50  # of a column or of folders: with more, it is no way to tell images apart
_FEWEST: Final = 10  # images in a slice that is shown
_OF_ROWS: Final = ("path", "label", "split")  # columns that say something else
_SURENESS: Final = "probability of the answer"
_SIGNIFICANT: Final = 0.05
_LOWEST: Final = "up to"
_THIRDS: Final = (1 / 3, 2 / 3)


@dataclass(frozen=True)
class Slice:
    """Some of the images, told by one property of theirs.

    Attributes:
        by, value: the property, and what it is for these images.
        is_worse: whether they are answered worse than the others by more than chance, all slices together: Fisher's
            exact test, one-sided, with Holm's correction. Unsure answers always are, so nothing is said of these.
    """

    by: str
    value: str
    n: int
    accuracy: Figure
    is_worse: bool = False


def slices_of(answers: Answers, data: Path | None) -> tuple[Slice, ...]:
    """Every slice of ten images or more, those of one property together.

    Args:
        data: the folder or CSV that the images came from.
    """
    sides, brightness = _looks(answers.images)
    found: dict[str, Sequence[str]] = {
        "shorter side": _thirds(sides, "{:.0f} px"),
        "brightness": _thirds(brightness, "{:.0f} of 255"),
        _SURENESS: _thirds(answers.confidence.astype(np.float64), "{:.4f}"),
        "folder": _folders(answers),
        **_columns(answers.images, data),
    }
    slices = [each for by, values in found.items() for each in _slices(by, values, answers.is_right)]
    tested = [each for each in slices if each.by != _SURENESS]
    n, n_right = len(answers.images), int(answers.is_right.sum())
    p_values = [
        float(hypergeom.cdf(round(each.accuracy.value * each.n), n, n_right, each.n)) for each in tested
    ]  # of drawing so few right ones, or fewer, among as many images
    worse = {id(each) for each, p in zip(tested, metrics.holm(p_values), strict=True) if p < _SIGNIFICANT}
    return tuple(replace(each, is_worse=id(each) in worse) for each in slices)


def _slices(by: str, values: Sequence[str], is_right: NDArray[np.bool_]) -> Iterator[Slice]:
    counts = Counter(value for value in values if value)
    if not 2 <= len(counts) <= _MOST_VALUES:
        return
    each = np.array(values)
    for value in sorted(counts, key=_in_order):
        if counts[value] >= _FEWEST:
            accuracy = Figure.share(float(is_right[each == value].mean()), counts[value])
            yield Slice(by, value, counts[value], accuracy)


def _in_order(value: str) -> tuple[bool, bool, tuple[str, str]]:
    """Thirds from the lowest up, all else in natural order."""
    return not value.startswith(_LOWEST), _LOWEST not in value, natural_key(value)


def _looks(labelled: Sequence[LabelledImage]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The shorter side in pixels and the mean brightness, 0 to 255, of every image: (n,) each."""
    found = list(prefetch(lambda image: _look(image.path), labelled, n_threads=n_cores(), ahead=64))
    return np.array([side for side, _ in found]), np.array([brightness for _, brightness in found])


def _look(path: Path) -> tuple[float, float]:
    """Of a JPEG an eighth of the size is decoded: this must cost little beside the answers."""
    try:
        data = images.read(path)
        header = read_header(data)
        if header and header.format == "JPEG":
            grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
            if grey is not None:
                return float(min(header.height, header.width)), float(grey.mean())
        picture = images.decode(data)
    except ImageError:  # it changed since it was answered
        return np.nan, np.nan
    return float(min(picture.shape[:2])), float(picture.mean())


def _thirds(numbers: NDArray[np.float64], shown: str) -> list[str]:
    """In which third of the images each number is; equal numbers are in the same third."""
    known = numbers[np.isfinite(numbers)]
    low, high = np.quantile(known, _THIRDS) if len(known) else (0.0, 0.0)
    below, above = shown.format(low), shown.format(high)
    names = [f"{_LOWEST} {below}", f"above {below}, {_LOWEST} {above}", f"above {above}"]
    return [names[int(value > low) + int(value > high)] if np.isfinite(value) else "" for value in numbers]


def _folders(answers: Answers) -> list[str]:
    """The folders that the images lie in, without those that only name the class."""
    labels = set(answers.labels)
    parts = [[part for part in image.path.parent.parts if part not in labels] for image in answers.images]
    n_common = 0
    while len({tuple(each[: n_common + 1]) for each in parts}) == 1 and n_common < max(map(len, parts)):
        n_common += 1
    return ["/".join(each[n_common:]) or "(the folder itself)" for each in parts]


def _columns(labelled: Sequence[LabelledImage], data: Path | None) -> Mapping[str, Sequence[str]]:
    """The values of the other columns of a CSV, one for every image."""
    if data is None or not data.is_file():
        return {}
    rows = {(data.parent / row["path"]).absolute(): row for _, row in read_label_rows(data)}
    names = [name for name in next(iter(rows.values()), {}) if name and name not in _OF_ROWS]
    return {
        name: [rows[image.path].get(name, "") if image.path in rows else "" for image in labelled] for name in names
    }
