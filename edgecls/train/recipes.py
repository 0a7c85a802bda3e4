"""What an option of None means: the recipe of a network, by its kind and the size of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgecls.train.augment import Augmentation, augmentation
from edgecls.train.optimizers import OptimizerOptions
from edgecls.train.options import NONE, Optimizer, TrainOptions

SMALL: Final = 64  # pixels a side up to which pictures count as small: larger batches, gentler augmentation

_HEAD_EPOCHS: Final = 10
_WEIGHT_DECAY: Final[dict[Optimizer, float]] = {"sgd": 5e-4, "adam": 0.0, "adamw": 0.05}
# at batch 128; by the measurements in docs/training.md
_SCRATCH_LR: Final = {"airbench": 0.4}
_ADAM_LR: Final = 1e-3
_HEAD_LR: Final = 3e-3
_HEAD_DROPOUT: Final = 0.5


@dataclass(frozen=True)
class Recipe:
    """The options of a training with every choice made.

    Attributes:
        head: the optimiser while the backbone is frozen; None where no epoch is.
        rest: the optimiser of the other epochs; None where there are none.
        head_epochs, rest_epochs: at most.
        head_dropout: of the features, while the backbone is frozen.
    """

    batch_size: int
    augmentation: Augmentation
    head: OptimizerOptions | None
    head_epochs: int
    head_dropout: float
    rest: OptimizerOptions | None
    rest_epochs: int


def recipe_of(options: TrainOptions, size_hw: tuple[int, int]) -> Recipe:
    """Choose what the user left open.

    Args:
        size_hw: of the network's input.
    """
    recipe, network, transfer = options.recipe, options.network, options.transfer
    is_small = max(size_hw) <= SMALL
    batch_size = recipe.batch_size or (128 if is_small else 32)
    from_scratch = network.resolved_weights == NONE and not options.source.extend
    head_epochs = transfer.freeze_epochs
    if head_epochs is None:
        head_epochs = 0 if from_scratch else min(_HEAD_EPOCHS, recipe.epochs)
    rest_epochs = recipe.epochs - head_epochs
    kind: Optimizer = recipe.optimizer or ("sgd" if from_scratch else "adamw")
    usual = _scratch_lr(network.model, kind) * batch_size / 128 if from_scratch else _HEAD_LR
    peak = recipe.lr or usual
    fine = transfer.fine_tune_lr or (peak if from_scratch else peak / 3)
    names = options.augmentation.augment or (("light",) if is_small else ("standard",))
    return Recipe(
        batch_size=batch_size,
        augmentation=augmentation(names, options.augmentation.erase),
        head=_optimizer(options, kind, peak) if head_epochs else None,
        head_epochs=head_epochs,
        head_dropout=_HEAD_DROPOUT if network.dropout is None else network.dropout,
        rest=_optimizer(options, kind, fine) if rest_epochs else None,
        rest_epochs=rest_epochs,
    )


def _scratch_lr(model: str, kind: Optimizer) -> float:
    return _SCRATCH_LR.get(model, 0.1) if kind == "sgd" else _ADAM_LR


def _optimizer(options: TrainOptions, kind: Optimizer, lr: float) -> OptimizerOptions:
    recipe = options.recipe
    decay = _WEIGHT_DECAY[kind] if recipe.weight_decay is None else recipe.weight_decay
    return OptimizerOptions(kind, lr, decay, recipe.momentum, recipe.schedule, recipe.warmup)
