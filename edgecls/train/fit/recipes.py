"""What an option of None means: every choice of a training, by the kind of network and by what the pictures are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgecls.errors import OptionError, counted
from edgecls.manifest import Preprocessing
from edgecls.train.data.augment import Augmentation, augmentation
from edgecls.train.data.survey import Survey
from edgecls.train.fit.optimizers import OptimizerOptions
from edgecls.train.options import TrainOptions
from edgecls.train.recipe_options import (
    SCRATCH,
    AugmentOptions,
    Balance,
    GeometryOptions,
    Monitor,
    NetworkOptions,
    NormStatistics,
    Optimizer,
    RecipeOptions,
    Schedule,
    TransferOptions,
)

_T = TypeVar("_T")

SMALL: Final = 64  # pixels a side up to which pictures count as small: larger batches

_HEAD_EPOCHS: Final = 20
_HEAD_LR: Final = 3e-3
_HEAD_DROPOUT: Final = 0.5
_SCRATCH_EPOCHS: Final = 15
# Pictures of 224 px that all weights see; of smaller ones more, as they cost less. EfficientNet-Lite0 sees 15 to 31 of
# them a second on two cores: 2 to 5 minutes, twice that where classes are uneven and the rare ones are few among them.
_FINE_TUNING_VIEWS: Final = 4_000
_UNEVEN_VIEWS: Final = 8_000
_VIEWS_AT: Final = 224  # pixels a side
_FINE_TUNING_EPOCHS: Final = (4, 40)  # the least, and the most for a few pictures
_LAYER_DECAY: Final = 0.85
# About ten steps. By three seeds it turned fine-tuning of cats and dogs from 0.2 points below the head to 0.5 above it;
# on weather, uneven CIFAR-10 and inspection photos it changed nothing that two seeds agreed on.
_EMA: Final = 0.9


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
    warmup: float = 0.2


_SCRATCH: Final = Usual("sgd", 0.1, 5e-4)
# A trained head leaves small gradients, of which Adam makes large steps: with a rate that rose for 0.2 of the steps the
# first epoch of all weights threw validation accuracy on inspection photos from 91 to 47 %, with 0.5 it rose to 94 %.
_TRANSFER: Final = Usual("adamw", _HEAD_LR, 0.05, warmup=0.5)
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
# Fields that RecipeOptions and Recipe have by the same names
_KEPT: Final = (
    "minutes", "epoch_images", "schedule_at", "patience", "batch_size", "balance", "monitor", "label_smoothing", "ema",
    "lookahead",
)  # fmt: skip
_ADAM_LR: Final = 1e-3  # of adam and adamw from scratch, at any batch
_WEIGHT_DECAY: Final[dict[Optimizer, float]] = {"sgd": 5e-4, "adam": 0.0, "adamw": 0.05}
_FINE_TUNE_LR: Final[dict[Optimizer, float]] = {"sgd": 1e-3, "adam": 5e-4, "adamw": 5e-4}


@dataclass(frozen=True)
class Recipe:
    """A training with every choice made.

    Attributes:
        seed: of the new weights, the order and the augmentation.
        preprocessing: how pictures become the network's input.
        unfreeze: what is trained after the head, as `--unfreeze` names it.
        minutes: into which the epochs are still to be planned; None where they are known.
        epoch_images: between two validations; None is all.
        schedule_at: share of the schedule that is over at the end of each epoch; None is even steps.
        monitor: the figure that chooses the best epoch.
        head: the optimiser while the backbone is frozen; None where no epoch is.
        rest: the optimiser of the other epochs; None where there are none.
        head_epochs, rest_epochs: at most.
        head_dropout: of the features, while the backbone is frozen.
        layer_decay: rate of a stage as a share of the next one's.
        keeps_statistics: whether batch norms stay in evaluation mode while their weights are fine-tuned.
        lookahead: steps of the other epochs between returns to the slow weights; 0 never returns.
        ema: decay of the moving average of the weights in all phases; 0 for none.
        mixup, cutmix: parameters of their beta distributions; 0 for none.
        temperature, teacher_weight: of a teacher's answers.
        are_views_open: whether the user has said nothing about how pictures are varied.
    """

    seed: int
    preprocessing: Preprocessing
    unfreeze: str
    minutes: float | None
    epoch_images: int | None
    schedule_at: tuple[float, ...] | None
    patience: int
    clip: float
    accumulate: int
    find_lr: bool
    batch_size: int
    label_smoothing: float
    balance: Balance
    monitor: Monitor
    augmentation: Augmentation
    mixup: float
    cutmix: float
    head: OptimizerOptions | None
    head_epochs: int
    head_dropout: float
    rest: OptimizerOptions | None
    rest_epochs: int
    layer_decay: float
    keeps_statistics: bool
    lookahead: int
    ema: float
    temperature: float
    teacher_weight: float
    are_views_open: bool


def recipe_of(options: TrainOptions, survey: Survey, preprocessing: Preprocessing, backbone: nn.Module) -> Recipe:
    """Choose what the user left open.

    Args:
        survey: what the training images are.
        preprocessing: how pictures become the network's input.
        backbone: of the network that is to be trained.

    Raises:
        OptionError: an option that the choices leave without effect, or an unknown augmentation.
    """
    asked, transfer, views = options.recipe, options.transfer, options.augmentation
    is_new, is_partial = options.is_from_scratch, transfer.unfreeze != "all"
    usual = _usual(options, is_new, backbone)
    if asked.momentum is not None and usual.optimizer != "sgd":
        raise OptionError(f"--momentum with {usual.optimizer}: only sgd has one; add --optimizer sgd, or leave it out")
    batch_size = asked.batch_size or (usual.batch_size if max(preprocessing.size_hw) <= SMALL else 32)
    head_epochs, epochs = _epochs(options, survey, preprocessing.size_hw)
    peak = asked.lr or usual.lr * (batch_size / 128 if is_new and usual.optimizer == "sgd" else 1)
    fine = peak if is_new else transfer.fine_tune_lr or _FINE_TUNE_LR[usual.optimizer]
    rest = _optimizer(options, usual, fine) if epochs > head_epochs else None
    names = views.augment or (("none",) if is_partial else ("light",))
    # a planned time may turn to the last stages, which are cut off and know no average
    is_averaged = rest is not None and not (is_new or is_partial or asked.minutes)
    return Recipe(
        seed=options.data_use.seed,
        preprocessing=preprocessing,
        unfreeze=transfer.unfreeze,
        minutes=asked.minutes,
        epoch_images=asked.epoch_images,
        schedule_at=asked.schedule_at,
        patience=asked.patience,
        clip=asked.clip,
        accumulate=asked.accumulate,
        find_lr=asked.find_lr,
        batch_size=batch_size,
        label_smoothing=_or(asked.label_smoothing, usual.label_smoothing),
        balance=asked.balance or ("root" if survey.is_uneven else "none"),
        monitor=asked.monitor or ("balanced-accuracy" if survey.is_uneven else "accuracy"),
        augmentation=augmentation(names, views.erase, views.crop_area),
        mixup=views.mixup,
        cutmix=views.cutmix,
        head=_optimizer(options, usual, peak) if head_epochs else None,
        head_epochs=head_epochs,
        head_dropout=_or(options.network.dropout, _HEAD_DROPOUT),
        rest=rest,
        rest_epochs=epochs - head_epochs,
        layer_decay=_or(transfer.layer_decay, 1.0 if is_new else _LAYER_DECAY),
        keeps_statistics=not is_new and transfer.norm_statistics != "learn",
        lookahead=_or(asked.lookahead, usual.lookahead),
        ema=_or(asked.ema, _EMA if is_averaged else 0.0),
        temperature=options.source.temperature,
        teacher_weight=options.source.teacher_weight,
        are_views_open=views == AugmentOptions(),
    )


def _or(asked: _T | None, usual: _T) -> _T:
    return usual if asked is None else asked


def repeating(recipe: Recipe, asked: TrainOptions) -> TrainOptions:
    """The options that were asked for with the choices in the place of None: given again, they repeat the training."""
    first = recipe.head or recipe.rest
    assert first  # there is an epoch at least
    made = replace(
        asked.recipe, epochs=None if recipe.minutes else recipe.head_epochs + recipe.rest_epochs,
        lr=None if recipe.find_lr else first.lr, optimizer=first.name,
        momentum=first.momentum if first.name == "sgd" else None, weight_decay=first.weight_decay,
        schedule=first.schedule, warmup=first.warmup,
        **{name: getattr(recipe, name) for name in _KEPT},
    )  # fmt: skip
    transfer, views = replace(asked.transfer, freeze_epochs=recipe.head_epochs), asked.augmentation
    if not recipe.rest:  # without the options that only the second phase uses
        usual = RecipeOptions()
        made = replace(made, minutes=None, lookahead=usual.lookahead, accumulate=usual.accumulate)
        transfer, views = TransferOptions(freeze_epochs=recipe.head_epochs), AugmentOptions()
    else:
        views = replace(views, augment=recipe.augmentation.operations or ("none",))
        transfer = replace(transfer, unfreeze=recipe.unfreeze, layer_decay=recipe.layer_decay)
        if not asked.is_from_scratch:
            rate = None if recipe.find_lr else recipe.rest.lr
            statistics: NormStatistics = "keep" if recipe.keeps_statistics else "learn"
            transfer = replace(transfer, fine_tune_lr=rate, norm_statistics=statistics)
    own = recipe.preprocessing
    geometry = GeometryOptions(own.resize, own.crop_fraction, own.interpolation)
    return replace(
        asked,
        network=replace(asked.network, image_size=own.size_hw, weights=asked.network.resolved_weights),
        geometry=asked.geometry if asked.source.extend else geometry,  # of a run that is extended it stays
        transfer=transfer,
        recipe=made,
        augmentation=views,
    )


def chosen(recipe: Recipe, survey: Survey) -> str:
    """One line: what the pictures are, and what was therefore chosen."""
    evenness = f"classes of {survey.smallest:,} to {survey.largest:,} images"
    if survey.smallest == survey.largest:
        evenness = f"classes of {survey.largest:,} images"
    parts = []
    if recipe.head:
        parts.append(f"{counted(recipe.head_epochs, 'epoch')} of the head at a rate of {recipe.head.lr:.2g}")
    if recipe.rest:
        weights = "all weights" if recipe.unfreeze == "all" else f"the stages {recipe.unfreeze}"
        number = "" if recipe.minutes else f"{counted(recipe.rest_epochs, 'epoch')} of "
        kept = ", batch norms keep their statistics" if recipe.keeps_statistics else ""
        kept += f", moving average {recipe.ema:g}" if recipe.ema else ""
        views = ", ".join(recipe.augmentation.operations) or "none"
        parts.append(
            f"{number}{weights} at {recipe.rest.lr:.2g} ({recipe.rest.name}{kept}), pictures varied by: {views}"
        )
    balance = {
        "none": "", "root": ", rare classes weigh more", "weights": ", all classes weigh the same",
        "sampling": ", classes drawn equally often",
    }  # fmt: skip
    best = f"the best epoch by {recipe.monitor.replace('-', ' ')}{balance[recipe.balance]}"
    return f"{evenness}: {'; then '.join(parts)}; {best}"


def _epochs(options: TrainOptions, survey: Survey, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Epochs of the head, and of all phases together."""
    frozen, epochs = options.transfer.freeze_epochs, options.recipe.epochs
    if options.is_from_scratch:
        return 0, epochs or _SCRATCH_EPOCHS
    if epochs is None:
        least, most = _FINE_TUNING_EPOCHS
        views = _UNEVEN_VIEWS if survey.is_uneven else _FINE_TUNING_VIEWS
        larger = math.sqrt(math.prod(size_hw)) / _VIEWS_AT
        tuning = min(max(round(views / larger / survey.n_images), least), most)
        head = _HEAD_EPOCHS if frozen is None else frozen
        return head, head + tuning
    return (min(_HEAD_EPOCHS, epochs // 2) if frozen is None else frozen), epochs


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
    rises = usual.warmup if recipe.warmup is None else recipe.warmup
    return OptimizerOptions(usual.optimizer, lr, decay, momentum, schedule, rises)
