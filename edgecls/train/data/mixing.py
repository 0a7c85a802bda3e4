"""Pairs of pictures of a batch mixed into one, and their labels with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """mixup and CutMix, one draw for a batch; where both are on, each batch takes one of them with equal chance.

    Every image is mixed with the one before it, so batches must be shuffled. Not torchvision's v2.MixUp: that one takes
    no uint8 pixels, and no generator.

    Attributes:
        n_classes: length of a target.
        mixup: blend by a share from the beta distribution with this parameter twice; 0 for never. arXiv 1710.09412.
        cutmix: paste a rectangle of a share drawn alike; 0 for never. arXiv 1905.04899.
    """

    n_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __call__(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            inputs: (n, h, w, 3) uint8, left as they are.
            targets: (n,) int64 label indices.
            generator: on the CPU.

        Returns:
            inputs: (n, h, w, 3) uint8.
            targets: (n, n_classes) float32, rows that sum to 1. F.cross_entropy takes them together with
                label_smoothing and with weights of the classes.
        """
        soft = F.one_hot(targets, self.n_classes).float()
        ways = [(mix, alpha) for mix, alpha in ((_blended, self.mixup), (_pasted, self.cutmix)) if alpha > 0]
        if not ways:
            return inputs, soft
        # NumPy's generator, as torch's beta distribution takes none
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        mix, alpha = ways[rng.integers(len(ways))]
        mixed, kept = mix(inputs, rng.beta(alpha, alpha), rng)
        return mixed, soft.roll(1, 0).lerp(soft, kept)


def _blended(inputs: Tensor, kept: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    return inputs.roll(1, 0).float().lerp_(inputs.float(), kept).round_().to(torch.uint8), kept


def _pasted(inputs: Tensor, kept: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """The second is the share of the pixels that were kept: the rectangle is cut off at the border."""
    _, height, width, _ = inputs.shape
    side = math.sqrt(1 - kept)
    top, bottom = _span(side * height, height, rng)
    left, right = _span(side * width, width, rng)
    mixed = inputs.clone()
    mixed[:, top:bottom, left:right] = inputs.roll(1, 0)[:, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(length: float, size: int, rng: np.random.Generator) -> tuple[int, int]:
    start = rng.uniform(0, size) - length / 2
    return max(0, round(start)), min(size, round(start + length))
