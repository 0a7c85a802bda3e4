"""What to train, on what and where: every option of `edgecls train`, in parts. Imports no torch: `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from edgecls.errors import OptionError
from edgecls.options import Options, Rule, above, at_least, between, expect, flag_name, flags_of, option, required
from edgecls.train.recipe_options import (
    NONE,
    AugmentOptions,
    GeometryOptions,
    NetworkOptions,
    RecipeOptions,
    TransferOptions,
)

TRACKERS: Final = ("mlflow", "wandb")
_ONLY_OF: Final = {
    "width": ("cnn", "resnet9", "airbench"),
    "blocks": ("cnn",),
    "convs": ("cnn",),
    "channels": ("cnn",),
    "padding": ("cnn",),
    "last_pool": ("cnn",),
    "batch_norm": ("cnn", "mlp"),
}  # options of NetworkOptions that shape some scratch networks only

Device = Literal["auto", "cpu", "cuda"]
Cache = Literal["auto", "ram", "none"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
ClassicalName = Literal["logistic", "svm", "random-forest", "boosting", "xgboost"]


@dataclass(frozen=True)
class DataOptions(Options):
    """Data."""

    val_fraction: float = option(
        0.2, "Share of each class that validates where the data has no val split.", rule=above(0, below=1)
    )
    folds: int = option(
        0,
        "Cross-validate: that many stratified folds, whose models form an ensemble; 0 for none.",
        rule=Rule(lambda folds: folds == 0 or folds >= 2, "0 (no folds) or 2 and more"),
    )
    cache: Cache = option("auto", "Keep decoded pictures in memory: where they fit, always, or never.")
    seed: int = option(
        0, "Seed of the split, the new weights, the order and the augmentation.", rule=between(0, 2**32 - 1)
    )


@dataclass(frozen=True)
class SourceOptions(Options):
    """Another model to start or learn from."""

    extend: str | None = option(None, "A run whose classes are kept while those of DATA are added.", shown="none")
    teacher: str | None = option(None, "A run whose answers are learnt beside the labels (distillation).", shown="none")
    temperature: float = option(
        4.0, "What both logits are divided by when the teacher's answers are learnt.", rule=above(0)
    )
    teacher_weight: float = option(0.7, "Share of the loss that the teacher's answers have.", rule=above(0, most=1))
    features: str | None = option(None, "A run or model whose features --classifier learns from.", shown="none")
    classifier: ClassicalName | None = option(None, "A scikit-learn classifier on --features.", shown="none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.features is None) != (self.classifier is None):
            raise OptionError("--features and --classifier go together: --features RUN --classifier svm")
        given = [name for name in ("extend", "teacher", "features") if getattr(self, name)]
        if len(given) > 1 and "features" in given:
            raise OptionError(f"--features trains no network, so it does not go with --{given[0]}")


@dataclass(frozen=True)
class MachineOptions(Options):
    """Machine."""

    device: Device = option("auto", "Where to train; auto is a CUDA GPU where there is one.")
    devices: int = option(1, "GPUs, or processes on a CPU, of each machine.", rule=at_least(1))
    nodes: int = option(1, "Machines, each started by torchrun or SLURM.", rule=at_least(1))
    strategy: str = option("auto", "Lightning's strategy: auto, or ddp, fsdp, ... for more than one device.")
    precision: Precision = option("auto", "Numbers to compute with; auto takes what trains fastest here.")
    track: tuple[str, ...] = option(
        (),
        "Trackers besides TensorBoard and CSV: mlflow, wandb.",
        rule=Rule(set(TRACKERS).issuperset, " or ".join(TRACKERS)),
    )


@dataclass(frozen=True)
class TrainOptions(Options):
    """What `edgecls train` does; a value of None is chosen as its help line says."""

    data: Path = option(Path("data"), "Class folders, train/val/test folders, or a CSV (path,label).")
    network: NetworkOptions = field(default_factory=NetworkOptions)
    geometry: GeometryOptions = field(default_factory=GeometryOptions)
    transfer: TransferOptions = field(default_factory=TransferOptions)
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    augmentation: AugmentOptions = field(default_factory=AugmentOptions)
    data_use: DataOptions = field(default_factory=DataOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    out: Path | None = option(None, "The run folder to make.", shown="runs/<time>-<model>")

    def __post_init__(self) -> None:
        super().__post_init__()
        frozen, epochs = self.transfer.freeze_epochs, self.recipe.epochs
        fits = frozen is None or epochs is None or frozen <= epochs
        expect(fits, "freeze_epochs", frozen, f"0 to --epochs ({epochs})")
        if frozen and self.is_from_scratch:
            raise OptionError(
                f"--freeze-epochs {frozen}: {self.network.model} begins with random weights, and would freeze random "
                "weights; leave it out, or name trained --weights"
            )
        if self.data_use.folds and self.source.extend:
            raise OptionError("--folds with --extend: folds are of one network on one data set; leave one out")
        _expect_in_use(self.network)
        _expect_effect(self)

    @property
    def is_from_scratch(self) -> bool:
        return self.network.resolved_weights == NONE and not self.source.extend

    @property
    def is_classical(self) -> bool:
        """Whether a scikit-learn classifier is fitted, and no network trained."""
        return self.source.classifier is not None

    @property
    def is_head_alone(self) -> bool:
        """Whether the options say that nothing but the head is trained."""
        return self.recipe.epochs is not None and self.transfer.freeze_epochs == self.recipe.epochs


@dataclass(frozen=True)
class PretrainedOptions(Options):
    """All options of `edgecls pretrained`."""

    model: str = required(
        "Name of the network: efficientnet_lite0, lite1 or lite2, a torchvision classifier, or timm/NAME."
    )
    image_size: int | None = option(
        None, "Height and width of the input in pixels.", shown="the weights' own", rule=between(8, 1024, " pixels")
    )
    out: Path | None = option(None, "The run folder to make.", shown="runs/<time>-<model>")


def _expect_in_use(network: NetworkOptions) -> None:
    """Refuse what would silently change nothing; a run that has recorded such an option can still be loaded."""
    usual = NetworkOptions()
    for name, models in _ONLY_OF.items():
        if getattr(network, name) != getattr(usual, name) and network.model not in models:
            raise OptionError(
                f"{flag_name(name)} shapes {', '.join(models)}, not --model {network.model}; leave it out, or use "
                "another --model"
            )


@dataclass(frozen=True)
class WithoutEffect:
    """Options that one kind of training would ignore, which is an error and not a silence.

    Attributes:
        kind: of training, for messages: "with --classifier", and docs/training.md.
        applies: whether the options ask for it.
        names: of the options that it does not use.
        why: a sentence for the user.
    """

    kind: str
    applies: Callable[[TrainOptions], bool]
    names: tuple[str, ...]
    why: str


_OF_CLASSICAL: Final = (
    "data", "image_size", "resize", "crop", "interpolation", "val_fraction", "folds", "cache", "seed", "device",
    "features", "classifier", "out",
)  # fmt: skip
_OF_VIEWS: Final = ("augment", "crop_area", "mixup", "cutmix", "erase")
_OF_BACKBONE: Final = ("unfreeze", "fine_tune_lr", "layer_decay", "norm_statistics", "lookahead", "accumulate")
_OF_PLAN: Final = ("epoch_images", "schedule_at")


def _names() -> tuple[str, ...]:
    return tuple(flag.name for flag in flags_of(TrainOptions))


def without_effect() -> tuple[WithoutEffect, ...]:
    """Which kind of training ignores which options; the first that applies is told."""
    return (
        WithoutEffect(
            "with --classifier", lambda options: options.is_classical,
            tuple(name for name in _names() if name not in _OF_CLASSICAL),
            "a classifier is fitted on features that are computed once, and no network is trained",
        ),
        WithoutEffect(
            "with as many --freeze-epochs as --epochs", lambda options: options.is_head_alone,
            (*_OF_VIEWS, *_OF_BACKBONE, *_OF_PLAN, "minutes"),
            "the head alone is trained, on features that are computed once",
        ),
        WithoutEffect(
            "from scratch", lambda options: options.is_from_scratch,
            ("unfreeze", "fine_tune_lr", "norm_statistics"),
            "all weights are new and learn from the first epoch on; their rate is --lr",
        ),
        WithoutEffect(
            "without --teacher", lambda options: not options.source.teacher, ("temperature", "teacher_weight"),
            "it has an effect only with a teacher; add --teacher RUN",
        ),
        WithoutEffect(
            "with --minutes", lambda options: options.recipe.minutes is not None,
            ("epochs", "epoch_images", "schedule_at", "patience", "devices", "nodes"),
            "the epochs are planned for one process on this machine, and all of the time is used",
        ),
        WithoutEffect(
            "with --folds", lambda options: bool(options.data_use.folds), ("val_fraction",),
            "each fold validates on the images that it holds out",
        ),
        WithoutEffect(
            "with --extend", lambda options: options.source.extend is not None, ("resize", "crop", "interpolation"),
            "the input stays that of the run which is extended",
        ),
        WithoutEffect(
            "with --find-lr", lambda options: options.recipe.find_lr, ("fine_tune_lr",),
            "the rates of all phases are looked for",
        ),
    )  # fmt: skip


def _expect_effect(options: TrainOptions) -> None:
    given = {name for name, (value, usual) in _values(options).items() if value != usual}
    for rule in without_effect():
        ignored = [flag_name(name) for name in rule.names if name in given]
        if ignored and rule.applies(options):
            them = "it" if len(ignored) == 1 else "them"
            raise OptionError(f"{', '.join(ignored)} {rule.kind}: {rule.why}; leave {them} out")
    optimizer, schedule = options.recipe.optimizer, options.recipe.schedule
    adaptive = optimizer or ("sgd" if options.is_from_scratch else "adamw")
    if options.recipe.momentum is not None and adaptive != "sgd":
        raise OptionError(f"--momentum with {adaptive}: only sgd has one; add --optimizer sgd, or leave it out")
    if options.recipe.minutes is not None and schedule in ("onecycle", "plateau"):
        raise OptionError(
            f"--schedule {schedule} with --minutes: it cannot follow the clock; use cosine, linear or step"
        )


def _values(options: TrainOptions) -> dict[str, tuple[Any, Any]]:
    """Each option's value and its default."""
    return {
        flag.name: (getattr(getattr(options, flag.part) if flag.part else options, flag.name), flag.default)
        for flag in flags_of(TrainOptions)
    }
