"""What moves the weights: parameter groups, the optimiser, and how its rate changes over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau

from edgecls.train.recipe_options import Optimizer, Schedule

_FIRST: Final = 0.04  # rate of the first warm-up step, as a share of the peak
_STEPS_AT: Final = (0.5, 0.75)  # of the step schedule: the rate falls tenfold after these shares of training
_PLATEAU_PATIENCE: Final = 3  # epochs without a lower validation loss before the rate falls tenfold


@dataclass(frozen=True)
class OptimizerOptions:
    """One phase's optimiser.

    Attributes:
        lr: the peak rate.
        weight_decay: of kernels and matrices; norms and biases have none.
        momentum: of sgd.
        warmup: share of the steps in which the rate rises to its peak.
    """

    name: Optimizer
    lr: float
    weight_decay: float
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    warmup: float = 0.2


def make_optimizer(
    network: nn.Module, options: OptimizerOptions, scales: Mapping[nn.Parameter, float]
) -> torch.optim.Optimizer:
    """The optimiser of all trainable weights.

    Weights with one dimension (norms, biases) are not decayed: shrinking them regularises nothing and costs accuracy
    (arXiv 1812.01187, section 3.1).

    Args:
        scales: rate of a weight as a share of the peak; 1 for those not in it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scales.get(parameter, 1.0), decay), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": parameters, "lr": options.lr * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    if options.name == "sgd":
        return torch.optim.SGD(described, options.lr, momentum=options.momentum, nesterov=options.momentum > 0)
    kind = torch.optim.Adam if options.name == "adam" else torch.optim.AdamW
    return kind(described, options.lr)


def make_schedulers(
    optimizer: torch.optim.Optimizer, options: OptimizerOptions, n_steps: int, progress: Callable[[int], float]
) -> list[dict[str, Any]]:
    """Lightning's description of what changes the rates with the steps; a plateau comes besides (`make_plateau`).

    Args:
        n_steps: optimiser steps of the whole phase, as far as it is known.
        progress: share of the schedule that is over before a step, 0 to 1; not for `onecycle` and `plateau`.
    """
    n_warmup = round(options.warmup * n_steps)
    if options.schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        cycle = OneCycleLR(optimizer, peaks, total_steps=max(n_steps, 2), pct_start=max(options.warmup, 1 / n_steps))
        return [{"scheduler": cycle, "interval": "step"}]
    if options.schedule == "plateau":  # LinearLR multiplies, so it does not undo what the plateau has divided
        return (
            [{"scheduler": LinearLR(optimizer, _FIRST, total_iters=n_warmup), "interval": "step"}] if n_warmup else []
        )
    curve = _CURVES[options.schedule]

    def share(step: int) -> float:
        over = progress(step)
        if over < options.warmup:
            return _FIRST + (1 - _FIRST) * over / options.warmup
        return curve((over - options.warmup) / (1 - options.warmup))

    return [{"scheduler": LambdaLR(optimizer, share), "interval": "step"}]


def make_plateau(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """Divides the rates by ten where the validation loss has not fallen for some epochs.

    Not among those that Lightning steps: it steps them after its checkpoint is written, so that a resumed run would go
    on at another rate.
    """
    return ReduceLROnPlateau(optimizer, factor=0.1, patience=_PLATEAU_PATIENCE)


def _stepped(progress: float) -> float:
    return 0.1 ** sum(progress >= at for at in _STEPS_AT)


# share of the peak by progress after warm-up, 0 to 1
_CURVES: Final[Mapping[str, Callable[[float], float]]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))),  # arXiv 1608.03983
    "linear": lambda progress: max(1 - progress, 0.0),
    "step": _stepped,
    "constant": lambda progress: 1.0,
}
