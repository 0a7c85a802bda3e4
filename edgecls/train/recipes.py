"""What an option of None means: the recipe of a network, by its kind and the size of its pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgecls.train.augment import Augmentation, augmentation
from edgecls.train.optimizers import OptimizerOptions
from edgecls.train.options import NONE, SCRATCH, NetworkOptions, Optimizer, Schedule, TrainOptions

SMALL: Final = 64  # pixels a side up to which pictures count as small: larger batches, gentler augmentation

_HEAD_EPOCHS: Final = 10
_HEAD_LR: Final = 3e-3
_HEAD_DROPOUT: Final = 0.5


@dataclass(frozen=True)
class Usual:
    """What a kind of training uses where the user says nothing; by the measurements in docs/training.md.

    Attributes:
        lr: peak rate; of a scratch network at batch 128, and in proportion to the batch.
    """

    optimizer: Optimizer
    lr: float
    weight_decay: float
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    label_smoothing: float = 0.1
    batch_size: int = 128
    lookahead: int = 0


_SCRATCH: Final = Usual("sgd", 0.1, 5e-4)
_TRANSFER: Final = Usual("adamw", _HEAD_LR, 0.05)
# airbench94's, whose rate 11.5 for 1,024 examples and decay 0.0153 are for a loss that is summed and decoupled decay
# (https://github.com/KellerJordan/cifar10-airbench): 11.5 / (1024 * (1 + 1 / (1 - 0.85))) * 128 = 0.1875
_AIRBENCH: Final = Usual("sgd", 0.1875, 0.0153 / 11.5, 0.85, "linear", 0.2, 256, lookahead=5)
# thousands of pixels move a logit together: at 0.1 SGD diverged on them, and Adam at 0.001 swung
_LINEAR: Final = Usual("adamw", 1e-4, 5e-4)
# no normalisation, or fully connected layers without: SGD at 0.1 killed their rectifiers on cats and dogs
_WITHOUT_NORM: Final = Usual("adam", 1e-3, 0.0)
# vgg and alexnet: VGG-11 stayed at chance at 1e-3 on 901 photos, and learnt half as much in an epoch of 8,000 images
_DEEP_WITHOUT_NORM: Final = Usual("adam", 1e-4, 0.0)
_BY_MODEL: Final = {"airbench": _AIRBENCH, "linear": _LINEAR}
_ADAM_LR: Final = 1e-3  # of adam and adamw from scratch, at any batch
_WEIGHT_DECAY: Final[dict[Optimizer, float]] = {"sgd": 5e-4, "adam": 0.0, "adamw": 0.05}


@dataclass(frozen=True)
class Recipe:
    """The options of a training with every choice made.

    Attributes:
        head: the optimiser while the backbone is frozen; None where no epoch is.
        rest: the optimiser of the other epochs; None where there are none.
        head_epochs, rest_epochs: at most.
        head_dropout: of the features, while the backbone is frozen.
        lookahead: steps of the other epochs between returns to the slow weights; 0 never returns.
    """

    batch_size: int
    label_smoothing: float
    augmentation: Augmentation
    head: OptimizerOptions | None
    head_epochs: int
    head_dropout: float
    rest: OptimizerOptions | None
    rest_epochs: int
    lookahead: int


def recipe_of(options: TrainOptions, size_hw: tuple[int, int], backbone: nn.Module) -> Recipe:
    """Choose what the user left open.

    Args:
        size_hw: of the network's input.
        backbone: of the network that is to be trained.
    """
    recipe, network, transfer = options.recipe, options.network, options.transfer
    is_small = max(size_hw) <= SMALL
    from_scratch = network.resolved_weights == NONE and not options.source.extend
    usual = _usual(options, from_scratch, backbone)
    batch_size = recipe.batch_size or (usual.batch_size if is_small else 32)
    head_epochs = transfer.freeze_epochs
    if head_epochs is None:
        head_epochs = 0 if from_scratch else min(_HEAD_EPOCHS, recipe.epochs)
    rest_epochs = recipe.epochs - head_epochs
    in_proportion = from_scratch and usual.optimizer == "sgd"
    peak = recipe.lr or usual.lr * (batch_size / 128 if in_proportion else 1)
    fine = transfer.fine_tune_lr or (peak if from_scratch else peak / 3)
    names = options.augmentation.augment or (("light",) if is_small else ("standard",))
    smoothing = usual.label_smoothing if recipe.label_smoothing is None else recipe.label_smoothing
    return Recipe(
        batch_size=batch_size,
        label_smoothing=smoothing,
        augmentation=augmentation(names, options.augmentation.erase),
        head=_optimizer(options, usual, peak) if head_epochs else None,
        head_epochs=head_epochs,
        head_dropout=_HEAD_DROPOUT if network.dropout is None else network.dropout,
        rest=_optimizer(options, usual, fine) if rest_epochs else None,
        rest_epochs=rest_epochs,
        lookahead=usual.lookahead if recipe.lookahead is None else recipe.lookahead,
    )


def _usual(options: TrainOptions, from_scratch: bool, backbone: nn.Module) -> Usual:
    usual = _TRANSFER
    if from_scratch:
        usual = _BY_MODEL.get(options.network.model, _SCRATCH)
        if usual is _SCRATCH and _lacks_norm(options.network, backbone):
            usual = _WITHOUT_NORM if options.network.model in SCRATCH else _DEEP_WITHOUT_NORM
    kind = options.recipe.optimizer
    if kind is None or kind == usual.optimizer:
        return usual
    lr = _HEAD_LR if not from_scratch else _ADAM_LR
    if kind == "sgd":
        lr = _SCRATCH.lr / 10  # trained weights bear a tenth of what new ones do
    return replace(usual, optimizer=kind, lr=lr, weight_decay=_WEIGHT_DECAY[kind])


def _lacks_norm(network: NetworkOptions, backbone: nn.Module) -> bool:
    if network.model == "cnn" and network.hidden:
        return True  # its fully connected layers have none
    return not any(isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm) for module in backbone.modules())


def _optimizer(options: TrainOptions, usual: Usual, lr: float) -> OptimizerOptions:
    recipe = options.recipe
    decay = usual.weight_decay if recipe.weight_decay is None else recipe.weight_decay
    momentum = usual.momentum if recipe.momentum is None else recipe.momentum
    schedule = recipe.schedule or usual.schedule
    return OptimizerOptions(usual.optimizer, lr, decay, momentum, schedule, recipe.warmup)
