"""What our preprocessing does to the files of a data set, and how well the training images can calibrate INT8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgecls.calibration.options import SampleOptions
from edgecls.evaluate.look.facts import Facts
from edgecls.labelled import stratified_sample

_CROP: Final = 0.875  # the usual centre crop of `--resize shortest`
_LOST: Final = 0.25  # share of the picture that such a crop cuts away
_SQUASHED: Final = 1.5  # change of the proportions that `--resize squash` makes
_SIZES: Final = (96, 128, 160, 224)  # pixels a side, the usual inputs
_N_EXAMPLES: Final = 4
_COVERED: Final = 0.9  # share of the range of brightness that a sample has to have


@dataclass(frozen=True)
class Effect:
    """What happens to some of the files, to how many, and a few of them."""

    words: str
    n: int
    examples: tuple[Path, ...]


def effects_of(facts: Sequence[Facts]) -> tuple[Effect, ...]:
    """What is turned, composited, rounded, enlarged, squashed or cut; only what happens to one file at least."""
    ratios = np.array([max(each.height, each.width) / min(each.height, each.width) for each in facts])
    shorter = np.array([min(each.height, each.width) for each in facts])
    found: dict[str, Any] = {
        "turned upright, as EXIF says": [each.orientation > 1 for each in facts],
        "put on a white background, since parts are transparent": [each.has_alpha for each in facts],
        "rounded from 16 bits to 8": [each.has_16_bits for each in facts],
        f"changed in the proportions by a factor of {_SQUASHED} or more by --resize squash, the default": (
            ratios >= _SQUASHED
        ),
        f"cut by {100 * _LOST:.0f} % of the area or more by --resize shortest --crop {_CROP}": (
            1 - _CROP**2 / ratios >= _LOST
        ),
        **{f"enlarged for an input of {size} px": shorter < size for size in _SIZES},
    }
    effects = []
    for words, happens in found.items():
        rows = np.flatnonzero(np.asarray(happens, bool)).tolist()
        if rows:
            most = sorted(rows, key=lambda row: -ratios[row])[:_N_EXAMPLES]
            effects.append(Effect(words, len(rows), tuple(facts[row].listed.image.path for row in most)))
    return tuple(effects)


def calibration_notes(facts: Sequence[Facts]) -> tuple[str, ...]:
    """Why the training images may be a poor calibration set; empty where nothing speaks against them."""
    trained = [each for each in facts if each.listed.split == "train"]
    n = SampleOptions().n_images
    by_image = {each.listed.image: each for each in trained}
    sample = [by_image[image] for image in stratified_sample([each.listed.image for each in trained], n, 0)]
    notes = []
    if len(trained) < n // 4:
        notes.append(f"{len(trained)} training images are few to calibrate INT8 with; {n // 4} or more are better")
    without = {each.listed.image.label for each in trained} - {each.listed.image.label for each in sample}
    if without:
        notes.append(f"{len(without):,} classes have no image among {n} calibration images; raise --calibration-images")
    if len(sample) < len(trained):
        low, high = (np.percentile([each.brightness for each in some], [1, 99]) for some in (sample, trained))
        span = float(high[1] - high[0])
        if span and (min(low[1], high[1]) - max(low[0], high[0])) / span < _COVERED:
            notes.append("the calibration images are not as dark and as bright as all of them; raise their number")
    return tuple(notes)
