"""Which images calibrate, and how the values of a tensor become its range."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from edgecls.options import Options, at_least, option

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)


@dataclass(frozen=True)
class SampleOptions(Options):
    """Calibration.

    Attributes:
        source: a folder is searched to the bottom; a CSV has the column `path`, and may have `label`.
        n_images: all there are, where there are fewer.
        seed: the same images, number and seed give the same set.
        allow_overlap: takes images of the validation or test split too, which is recorded.
    """

    n_images: int = option(512, "Largest number of calibration images.", flag="calibration_images", rule=at_least(1))
    seed: int = option(0, "Seed that the calibration images are drawn by.", rule=at_least(0))
    source: Path | None = option(
        None, "Folder or CSV of the images that set the INT8 ranges.", shown="the training split", flag="calibration"
    )
    allow_overlap: bool = option(False, "Allow calibration images that are validation or test images too.")
