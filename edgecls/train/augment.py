"""Augmentation on batches of uint8 pixels, after the preprocessing that validation and prediction share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from edgecls.errors import OptionError


@dataclass(frozen=True)
class Augmentation:
    """Random views of a batch.

    Attributes:
        flip: mirror left and right, every second image.
        shift: move by up to this share of the side in both axes, the border mirrored.
        zoom: cut out a random rectangle of this share of the area or more (aspect 3/4 to 4/3) and
            enlarge it to the full size; 1 for none. The crop of Inception training, arXiv 1409.4842.
    """

    flip: bool = False
    shift: float = 0.0
    zoom: float = 1.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """images: (n, h, w, 3) uint8 -> the same shape and dtype."""
        if self.zoom < 1:
            images = self._zoomed(images, generator)
        if self.flip or self.shift:
            images = self._shifted(images, generator)
        return images

    def _shifted(self, images: Tensor, generator: torch.Generator) -> Tensor:
        # one gather does both: row and column indices are moved, mirrored at the border, and reversed for a flip
        n, height, width, _ = images.shape
        rows = _moved(n, height, round(self.shift * height), generator)
        columns = _moved(n, width, round(self.shift * width), generator)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        return images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]

    def _zoomed(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, height, width, _ = images.shape
        result = torch.empty_like(images)
        for index in range(n):
            area, aspect, down, right = torch.rand(4, generator=generator).tolist()
            area = self.zoom + (1 - self.zoom) * area
            aspect = math.exp((2 * aspect - 1) * math.log(4 / 3))
            crop_h = min(height, max(1, round(height * math.sqrt(area / aspect))))
            crop_w = min(width, max(1, round(width * math.sqrt(area * aspect))))
            view = transforms.resized_crop(
                images[index].permute(2, 0, 1),
                int(down * (height - crop_h + 1)), int(right * (width - crop_w + 1)), crop_h, crop_w,
                [height, width], interpolation=InterpolationMode.BILINEAR, antialias=True,
            )  # fmt: skip
            result[index] = view.permute(1, 2, 0)
        return result


def _moved(n: int, size: int, most: int, generator: torch.Generator) -> Tensor:
    """(n, size) source indices: a range moved by -most..most and mirrored back into 0..size-1."""
    offsets = torch.randint(-most, most + 1, (n, 1), generator=generator)
    moved = (torch.arange(size) + offsets).abs()
    return torch.where(moved >= size, 2 * (size - 1) - moved, moved)


PRESETS: Final[Mapping[str, Augmentation]] = {
    "none": Augmentation(),
    "shift": Augmentation(shift=1 / 16),
    "light": Augmentation(flip=True, shift=1 / 16),
    "standard": Augmentation(flip=True, zoom=0.35),
}


def augmentation(name: str) -> Augmentation:
    """The preset of this name.

    Raises:
        OptionError: no such preset.
    """
    if name not in PRESETS:
        raise OptionError(f"--augment {name}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
