"""What the training images are: how many, how evenly dealt out, how large, and whether they have colours."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from edgecls import images
from edgecls.datasets import Dataset
from edgecls.errors import ImageError
from edgecls.labelled import stratified_sample
from edgecls.manifest import Preprocessing

UNEVEN: Final = 5.0  # the largest class has so many times the images of the smallest, or more

_SAMPLE: Final = 100
_THUMBNAIL: Final = Preprocessing((32, 32), "squash", 1.0)
_COLOURLESS: Final = 3.0  # of 255: mean distance of a pixel's largest and smallest channel that JPEG leaves in grey
_GREY_SHARE: Final = 0.95  # of the sample


@dataclass(frozen=True)
class Survey:
    """Facts about a training set, from which the recipe is chosen.

    Attributes:
        n_images: that train.
        largest, smallest: images of the largest and of the smallest class that train.
        side: median of the pictures' shorter sides in pixels; 0 where none of the sample can be read.
        aspect: median of the longer side as a multiple of the shorter one, 1 or more.
        is_grey: whether the pictures have no colours, whatever their files say.
    """

    n_images: int
    largest: int
    smallest: int
    side: int
    aspect: float
    is_grey: bool

    @property
    def is_uneven(self) -> bool:
        return self.largest >= UNEVEN * self.smallest


def survey_of(dataset: Dataset, seed: int) -> Survey:
    """Look at a sample of 100 training images; those that cannot be read are reported when all are decoded."""
    counts = Counter(image.label for image in dataset.splits["train"]).values()
    sides: list[tuple[int, int]] = []
    colourless: list[bool] = []
    for image in stratified_sample(dataset.splits["train"], _SAMPLE, seed):
        try:
            data = images.read(image.path)
            height, width = images.stored_hw(data)
            thumbnail = images.resize_and_crop(images.decode(data, _THUMBNAIL), _THUMBNAIL).astype(np.int16)
        except ImageError:
            continue
        sides.append((min(height, width), max(height, width)))
        colourless.append(bool(np.ptp(thumbnail, axis=2).mean() < _COLOURLESS))
    side = round(median(short for short, _ in sides)) if sides else 0
    aspect = median(long / short for short, long in sides) if sides else 1.0
    is_grey = bool(colourless) and float(np.mean(colourless)) >= _GREY_SHARE
    return Survey(len(dataset.splits["train"]), max(counts), min(counts), side, aspect, is_grey)
