"""Pictures unlike the others of their class: dark, bright, empty, blurred, or of an extreme shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls.evaluate.look.facts import Facts
from edgecls.labelled import Split

_FAR: Final = 4.0  # robust standard deviations from the median of the class
_FEW: Final = 5  # pictures of a class below which it has no usual picture
_TO_SD: Final = 1.4826  # median absolute deviation of a normal distribution -> its standard deviation
_DARK, _BRIGHT, _EMPTY, _BLURRED, _LONG = 30.0, 225.0, 6.0, 25.0, 2.5  # beyond these only; no class is unlike itself


@dataclass(frozen=True)
class Odd:
    """A picture and what is unusual about it, in words."""

    path: Path
    label: str
    split: Split
    reason: str


def odd_ones(facts: Sequence[Facts]) -> tuple[Odd, ...]:
    """Those that lie beyond an absolute limit and far from the others of their class, in the order of the files."""
    classes: defaultdict[str, list[int]] = defaultdict(list)
    for index, each in enumerate(facts):
        classes[each.listed.image.label].append(index)
    reasons: defaultdict[int, list[str]] = defaultdict(list)
    for rows in classes.values():
        for index, reason in _of_class([facts[index] for index in rows]):
            reasons[rows[index]].append(reason)
    return tuple(
        Odd(each.image.path, each.image.label, each.split, ", ".join(reasons[index]))
        for index, each in ((index, facts[index].listed) for index in sorted(reasons))
    )


def _of_class(facts: Sequence[Facts]) -> Iterator[tuple[int, str]]:
    brightness = np.array([each.brightness for each in facts])
    contrast = np.array([each.contrast for each in facts])
    sharpness = np.array([each.sharpness for each in facts])
    shape = np.array([np.log(each.width / each.height) for each in facts])
    checks = (
        (brightness < _DARK, -_far(brightness), "dark: a mean of {:.0f} of 255", brightness),
        (brightness > _BRIGHT, _far(brightness), "bright: a mean of {:.0f} of 255", brightness),
        (contrast < _EMPTY, -_far(contrast), "empty: nearly one colour, with a deviation of {:.1f} of 255", contrast),
        (
            (sharpness < _BLURRED) & (contrast >= _EMPTY), -_far(np.log(sharpness + 1)),
            "blurred: a sharpness of {:.1f}", sharpness,
        ),
        (
            np.abs(shape) > np.log(_LONG), np.abs(_far(shape)),
            "of an extreme shape: {:.1f} times as long as the other side", np.exp(np.abs(shape)),
        ),
    )  # fmt: skip
    for is_beyond, distance, words, values in checks:
        for index in np.flatnonzero(is_beyond & (distance > _FAR)).tolist():
            yield index, words.format(values[index])


def _far(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in robust standard deviations; 0 in a class of a few pictures."""
    if len(values) < _FEW:
        return np.zeros(len(values))
    middle = np.median(values)
    deviation = _TO_SD * np.median(np.abs(values - middle))
    return np.asarray((values - middle) / max(deviation, 1e-3 * max(abs(middle), 1.0)))
