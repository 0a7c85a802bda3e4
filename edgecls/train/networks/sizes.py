"""Which sizes of images a network can take: only the network itself knows, so it is tried."""

from __future__ import annotations

from typing import Final, cast

import torch
from torch import Tensor, nn

from edgecls.errors import OptionError

_LARGEST_TRIED: Final = 512  # pixels a side, to find out what is large enough


def run_at_size(network: nn.Module, batch: Tensor, model: str) -> Tensor:
    """What a network answers to (n, 3, h, w) float, or a classifier to (n, h, w, 3) uint8.

    Raises:
        OptionError: it cannot take images of that size (transformers know one; deep networks shrink small ones away).
    """
    try:
        with torch.inference_mode():
            return cast(Tensor, network(batch))
    except Exception as error:  # networks assert, divide by zero and look for what is not there
        height, width = _size_of(batch)
        reason = " ".join(str(error).split())[:200].rstrip(".!") or type(error).__name__
        smallest = _smallest(network, batch)
        asked = f"--image-size {height if height == width else f'{height},{width}'}"
        if smallest:
            raise OptionError(
                f"{asked}: too small for {model} ({reason}); each side must be {smallest} px or more"
            ) from error
        raise OptionError(
            f"{asked}: {model} cannot take images of {height} x {width} px ({reason}); leave --image-size out for the "
            "size of its weights"
        ) from error


def takes(network: nn.Module, batch: Tensor) -> bool:
    """Whether a network can take images of this size."""
    try:
        with torch.inference_mode():
            network(batch)
    except Exception:
        return False
    return True


def _size_of(batch: Tensor) -> tuple[int, int]:
    height, width = batch.shape[1:3] if batch.dtype == torch.uint8 else batch.shape[2:]
    return height, width


def _smallest(network: nn.Module, batch: Tensor) -> int | None:
    """The side that both must have for a network, or None where it is not that they are too small.

    Only the network itself knows; trying costs milliseconds, and is for an error message only.
    """
    height, width = _size_of(batch)

    def is_enough(side: int) -> bool:
        sides = max(height, side), max(width, side)
        is_pixels = batch.dtype == torch.uint8
        return takes(network, batch.new_zeros((1, *sides, 3) if is_pixels else (1, 3, *sides)))

    low, high = min(height, width), 2 * min(height, width)
    while high <= _LARGEST_TRIED and not is_enough(high):
        low, high = high, 2 * high
    if high > _LARGEST_TRIED or not is_enough(high + high // 2):  # a network of one size may take that one only
        return None
    return next(side for side in range(low + 1, high + 1) if side == high or is_enough(side))
