"""Lookahead: slow weights that follow the fast ones, and to which those return every few steps (arXiv 1907.08610)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

_INERTIA: Final = 0.95  # share of themselves that the slow weights would keep a step, at the end of training


class Lookahead:
    """The slow weights of a network, batch norm's running statistics among them.

    They hold the network back the more the further training is, so that it ends at an average of its last steps: at a
    return they keep `0.95 ** every * progress ** 3` of themselves (as airbench94 does, arXiv 2404.00498), where the
    paper has a constant half. After the last step the network is left at the slow weights.

    Args:
        every: steps between returns.
        progress: share of the training that is over after so many steps, 0 to 1.

    Attributes:
        slow: the weights, for a checkpoint; empty before the first return.
    """

    def __init__(self, every: int, progress: Callable[[int], float]) -> None:
        self.every, self.progress = every, progress
        self.slow: Sequence[Tensor] = ()

    @torch.no_grad()
    def step(self, network: nn.Module, n_taken: int) -> None:
        """To be called after every step of the optimiser; `n_taken` counts it."""
        over = self.progress(n_taken)
        if n_taken % self.every and over < 1:
            return
        fast = [each for each in network.state_dict().values() if each.is_floating_point()]
        if not self.slow:
            self.slow = [each.clone() for each in fast]
        slow = self.slow = [each.to(weight.device) for each, weight in zip(self.slow, fast, strict=True)]
        keep = _INERTIA**self.every * over**3
        torch._foreach_lerp_(slow, fast, 1 - keep)
        torch._foreach_copy_(fast, slow)
