"""Which images set the INT8 ranges: a stratified, seeded draw from the training split, never the others."""

from __future__ import annotations

from dataclasses import dataclass

from edgecls.datasets import Dataset, LabelledImage, stratified_sample
from edgecls.errors import OptionError


@dataclass(frozen=True)
class SampleOptions:
    """Attributes:
    n_images: how many to draw; all training images where there are fewer.
    seed: the same images, number and seed give the same set.
    """

    n_images: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_images < 1:
            raise OptionError(f"--calibration-images {self.n_images}: expected 1 or more")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: expected 0 or more")


def draw_calibration_set(dataset: Dataset, options: SampleOptions) -> list[LabelledImage]:
    """Draw from the training split, each class in proportion; validation and test images are never drawn,
    or the accuracy measured on them would be that of a model that has seen them."""
    return stratified_sample(dataset.splits["train"], options.n_images, options.seed)
