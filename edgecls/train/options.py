"""What to train, on what and how: every option of `edgecls train`, in parts. Imports no torch, so `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from edgecls.errors import OptionError
from edgecls.manifest import Interpolation, Resize
from edgecls.options import flag_name, flags_of, option, required
from edgecls.train.variations import operations_of

SCRATCH: Final = ("linear", "mlp", "cnn", "resnet9", "airbench")
LITE_NAMES: Final = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
TIMM_PREFIX: Final = "timm/"
IMAGENET: Final = "imagenet"
NONE: Final = "none"
TRACKERS: Final = ("mlflow", "wandb")
_MOST_MINUTES: Final = 60 * 24 * 30  # a month
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
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "onecycle", "linear", "step", "plateau", "constant"]
BatchNorm = Literal["conv", "block", "none"]
Padding = Literal["same", "none"]
LastPool = Literal["average", "max", "none"]
Balance = Literal["none", "root", "weights", "sampling"]
Monitor = Literal["accuracy", "balanced-accuracy", "f1", "loss"]
NormStatistics = Literal["learn", "keep"]
Cache = Literal["auto", "ram", "none"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
ClassicalName = Literal["logistic", "svm", "random-forest", "boosting", "xgboost"]


def _expect(holds: bool, flag: str, value: object, expected: str) -> None:
    if not holds:
        raise OptionError(f"--{flag} {value}: expected {expected}")


@dataclass(frozen=True)
class NetworkOptions:
    """Network."""

    model: str = option(
        "efficientnet_lite0", "A network from scratch (linear, mlp, cnn, resnet9, airbench), efficientnet_lite0, lite1 "
        "or lite2, a torchvision classifier, or timm/NAME."
    )  # fmt: skip
    weights: str | None = option(
        None, "What the network begins with: imagenet, none, or a state dict file.", shown="imagenet; none from scratch"
    )
    image_size: tuple[int, ...] | None = option(
        None, "Height and width of the network's input in pixels; one number for a square.",
        shown="the weights' own, or four times the pictures' where they are small; from scratch 32 to 128",
    )  # fmt: skip
    width: int | None = option(
        None, "Channels of the first layer of cnn, resnet9 and airbench.", shown="16; 32 for airbench"
    )
    blocks: int | None = option(None, "Blocks of cnn, each ending in a pooling.", shown="until the map is 4 px a side")
    convs: int = option(2, "Convolutions in each block of cnn.")
    channels: tuple[int, ...] | None = option(
        None, "Channels of each block of cnn, such as 20,64, in place of --width and --blocks.",
        shown="doubling, up to eightfold",
    )  # fmt: skip
    padding: Padding = option("same", "Padding of the convolutions of cnn: same keeps the size, none loses 2 px.")
    last_pool: LastPool | None = option(
        None, "How cnn ends: with the average over the map, or with all of its places, after a max pooling or none.",
        shown="max with --hidden, else average",
    )  # fmt: skip
    batch_norm: BatchNorm = option(
        "conv", "Where cnn has a batch norm: after every convolution, once in a block, or nowhere; none is for mlp too."
    )
    hidden: tuple[int, ...] | None = option(
        None, "Widths of the fully connected layers before the logits, such as 512,256.",
        shown="512,256,128 for mlp, else none",
    )  # fmt: skip
    dropout: float | None = option(
        None, "Share of the inputs of every fully connected layer that is dropped.",
        shown="0.5 while the backbone is frozen, 0.2 for mlp and cnn, else 0",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.model in SCRATCH and self.weights == IMAGENET:
            raise OptionError(f"--weights imagenet: there are none for {self.model}; use --weights none")
        sides = self.image_size or (8,)
        fits = len(sides) <= 2 and all(8 <= side <= 1024 for side in sides)
        _expect(fits, "image-size", ",".join(map(str, sides)), "8 to 1024 pixels, one number or height,width")
        _expect(self.width is None or self.width >= 1, "width", self.width, "1 or more channels")
        _expect(self.blocks is None or 1 <= self.blocks <= 8, "blocks", self.blocks, "1 to 8")
        _expect(1 <= self.convs <= 8, "convs", self.convs, "1 to 8")
        if self.channels is not None:
            shown = ",".join(map(str, self.channels))
            fits = 1 <= len(self.channels) <= 8 and min(self.channels) >= 1
            _expect(fits, "channels", shown, "1 to 8 widths of 1 or more")
            if self.width is not None or self.blocks is not None:
                raise OptionError(f"--channels {shown} says what --width and --blocks say; leave those out")
        widths = self.hidden or ()
        _expect(all(width >= 1 for width in widths), "hidden", ",".join(map(str, widths)), "widths of 1 or more")
        _expect(self.dropout is None or 0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")

    @property
    def resolved_weights(self) -> str:
        return self.weights or (NONE if self.model in SCRATCH else IMAGENET)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width that were asked for."""
        return (self.image_size[0], self.image_size[-1]) if self.image_size else None


@dataclass(frozen=True)
class GeometryOptions:
    """How a picture becomes the input."""

    resize: Resize | None = option(
        None, "How a picture gets the input's shape: shortest keeps its proportions and cuts off what is too long, "
        "squash changes them, pad keeps them and adds a white border.", shown="squash, which shows all of it",
    )  # fmt: skip
    crop: float | None = option(
        None, "Share of each side of the resized picture that the centre crop keeps.",
        shown="1; with shortest the weights' own, mostly 0.875, and 1 from scratch",
    )  # fmt: skip
    interpolation: Interpolation | None = option(
        None, "How the resize computes a pixel; from a two-fold shrink on it is always area.",
        shown="the weights' own, mostly bilinear",
    )  # fmt: skip

    def __post_init__(self) -> None:
        _expect(self.crop is None or 0 < self.crop <= 1, "crop", self.crop, "a number above 0 and at most 1")


@dataclass(frozen=True)
class TransferOptions:
    """Transfer from trained weights."""

    freeze_epochs: int | None = option(
        None, "How many of the epochs train the new head alone, on features that are computed once.",
        shown="20 with trained weights (at most half of --epochs), else 0",
    )  # fmt: skip
    unfreeze: str = option(
        "all", "What is trained after the head: all weights, last:N stages, or all from a named stage on."
    )
    fine_tune_lr: float | None = option(
        None, "Highest learning rate once the backbone is unfrozen.", shown="0.0005; 0.001 for sgd"
    )
    layer_decay: float | None = option(
        None,
        "The rate of a stage as a share of the rate of the stage behind it.",
        shown="0.85 with trained weights, else 1",
    )
    norm_statistics: NormStatistics | None = option(
        None,
        "What batch norms of trained weights do: keep the statistics of their first training, or learn new ones.",
        shown="keep",
    )

    def __post_init__(self) -> None:
        _expect(self.freeze_epochs is None or self.freeze_epochs >= 0, "freeze-epochs", self.freeze_epochs, "0 or more")
        rate, decay = self.fine_tune_lr, self.layer_decay
        _expect(rate is None or 0 < rate < 100, "fine-tune-lr", rate, "a number above 0 and below 100")
        _expect(decay is None or 0 < decay <= 1, "layer-decay", decay, "a number above 0 and at most 1")
        number = self.unfreeze.removeprefix("last:")
        is_count = number == self.unfreeze or (number.isdecimal() and int(number) > 0)
        _expect(
            bool(self.unfreeze) and is_count, "unfreeze", self.unfreeze, "all, last:N with N of 1 or more, or a stage"
        )


@dataclass(frozen=True)
class RecipeOptions:
    """Recipe."""

    epochs: int | None = option(
        None, "Passes over the training images, those of the head among them.",
        shown="15 from scratch; else 20 for the head and 4 to 40 more, fewer where there are more pictures; with "
        "--minutes as many as fit",
    )  # fmt: skip
    minutes: float | None = option(
        None,
        "Plan the training into this many minutes, from the start of the command to the finished model.",
        shown="no limit",
    )
    epoch_images: int | None = option(
        None, "Images between two validations, which end an epoch.", shown="all training images; fewer with --minutes"
    )
    batch_size: int | None = option(
        None,
        "How many images make one step, on all devices together.",
        shown="128 up to 64 px (256 for airbench), else 32",
    )
    lr: float | None = option(
        None, "Highest learning rate of the first phase.",
        shown="0.003; from scratch sgd 0.1 (airbench 0.19) at batch 128, adam 0.001, linear 0.0001",
    )  # fmt: skip
    optimizer: Optimizer | None = option(
        None,
        "What moves the weights: sgd (with Nesterov momentum), adam or adamw.",
        shown="from scratch sgd, adamw for linear, adam for layers without batch norm; else adamw",
    )
    momentum: float | None = option(None, "Momentum of sgd.", shown="0.9; 0.85 for airbench")
    weight_decay: float | None = option(
        None,
        "Weight decay of kernels and matrices; norms and biases have none.",
        shown="0.0005 for sgd (0.0013 for airbench), 0.05 for adamw, 0 for adam",
    )
    schedule: Schedule | None = option(
        None, "How the rate falls after warm-up; onecycle moves the momentum too.", shown="cosine; linear for airbench"
    )
    warmup: float | None = option(
        None, "Share of the steps in which the rate rises to its peak.", shown="0.5 with trained weights, else 0.2"
    )
    label_smoothing: float | None = option(
        None, "Share of each target spread over all classes.", shown="0.1; 0.2 for airbench"
    )
    balance: Balance | None = option(
        None, "What is done for uneven classes: nothing, weigh each class by the root of its rarity, or so that all "
        "weigh the same, or draw all classes equally often.",
        shown="root where the largest class has five times the images of the smallest, else none",
    )  # fmt: skip
    monitor: Monitor | None = option(
        None, "Which figure of the validation images chooses the best epoch; balanced accuracy is the mean over "
        "classes.",
        shown="balanced-accuracy where the largest class has five times the images of the smallest, else accuracy",
    )  # fmt: skip
    clip: float = option(0.0, "The gradient is made no longer than this norm; 0 is no limit.")
    accumulate: int = option(1, "Batches whose gradients make one step.")
    ema: float | None = option(
        None, "Decay of a moving average of the weights, such as 0.99, that is judged and kept; 0 for none.",
        shown="0.9 where all published weights are fine-tuned without --minutes, else 0",
    )  # fmt: skip
    lookahead: int | None = option(
        None, "Steps after which the weights return to their slow average (Lookahead); 0 never.",
        shown="5 for airbench, else 0",
    )  # fmt: skip
    patience: int = option(10, "Epochs without a better validation figure before a phase stops; 0 never stops.")
    find_lr: bool = option(False, "Look for the peak learning rate first (learning-rate range test).")
    schedule_at: tuple[float, ...] | None = option(
        None, "Share of the schedule that is over at the end of each epoch, as a training with --minutes records it.",
        shown="even steps",
    )  # fmt: skip

    def __post_init__(self) -> None:
        _expect(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "1 or more")
        fits = self.minutes is None or 0 < self.minutes <= _MOST_MINUTES
        _expect(fits, "minutes", self.minutes, f"a number above 0 and up to {_MOST_MINUTES:,}")
        images = self.epoch_images
        _expect(images is None or images >= 2, "epoch-images", images, "2 or more")
        at = self.schedule_at or (1.0,)
        fits = all(0 < share <= 1 for share in at)
        _expect(fits, "schedule-at", ",".join(map(str, at)), "shares above 0 and up to 1")
        size = self.batch_size
        _expect(size is None or size >= 2, "batch-size", size, "2 or more; batch norm cannot train on one")
        _expect(self.lr is None or 0 < self.lr < 100, "lr", self.lr, "a number above 0 and below 100")
        _expect(self.momentum is None or 0 <= self.momentum < 1, "momentum", self.momentum, "0 or more and below 1")
        decay = self.weight_decay
        _expect(decay is None or 0 <= decay < 1, "weight-decay", decay, "0 or more and below 1")
        rises = self.warmup
        _expect(rises is None or 0 <= rises < 1, "warmup", rises, "0 or more and below 1")
        smoothing = self.label_smoothing
        _expect(smoothing is None or 0 <= smoothing < 1, "label-smoothing", smoothing, "0 or more and below 1")
        _expect(self.clip >= 0, "clip", self.clip, "0 or more")
        _expect(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more")
        _expect(self.ema is None or 0 <= self.ema < 1, "ema", self.ema, "0 or more and below 1")
        _expect(self.lookahead is None or self.lookahead >= 0, "lookahead", self.lookahead, "0 (never) or more")
        _expect(self.patience >= 0, "patience", self.patience, "0 (never stop) or more")
        if self.find_lr and self.lr is not None:
            raise OptionError("--find-lr with --lr: the one looks for what the other says; leave one of them out")


@dataclass(frozen=True)
class AugmentOptions:
    """Augmentation."""

    augment: tuple[str, ...] | None = option(
        None, "How training pictures are varied: none, shift, light, standard, trivial, augmix; or by name: crop, "
        "flip, vflip, rotate, affine, colour, grey, blur.", shown="light",
    )  # fmt: skip
    crop_area: float | None = option(
        None, "Smallest share of a picture's area that the crop of --augment keeps.", shown="0.35"
    )
    mixup: float = option(
        0.0, "Mix pairs of pictures; the number is the parameter of the beta distribution, such as 0.2."
    )
    cutmix: float = option(0.0, "Paste a part of another picture; the number is the same parameter, such as 1.")
    erase: float = option(0.0, "Share of the pictures of which a random rectangle is erased.")

    def __post_init__(self) -> None:
        area, names = self.crop_area, self.augment
        _expect(area is None or 0 < area <= 1, "crop-area", area, "a number above 0 and at most 1")
        operations = () if names is None else operations_of(names)
        if area is not None and "crop" not in operations:
            raise OptionError(f"--crop-area {area}: nothing is cropped; add --augment crop, or leave it out")
        _expect(self.mixup >= 0, "mixup", self.mixup, "0 or more")
        _expect(self.cutmix >= 0, "cutmix", self.cutmix, "0 or more")
        _expect(0 <= self.erase <= 1, "erase", self.erase, "0 to 1")


@dataclass(frozen=True)
class DataOptions:
    """Data."""

    val_fraction: float = option(0.2, "Share of each class that validates where the data has no val split.")
    folds: int = option(0, "Cross-validate: that many stratified folds, whose models form an ensemble; 0 for none.")
    cache: Cache = option("auto", "Keep decoded pictures in memory: where they fit, always, or never.")
    seed: int = option(0, "Seed of the split, the new weights, the order and the augmentation.")

    def __post_init__(self) -> None:
        _expect(0 < self.val_fraction < 1, "val-fraction", self.val_fraction, "a number above 0 and below 1")
        _expect(self.folds == 0 or self.folds >= 2, "folds", self.folds, "0 (no folds) or 2 and more")
        _expect(0 <= self.seed < 2**32, "seed", self.seed, f"0 to {2**32 - 1}")


@dataclass(frozen=True)
class SourceOptions:
    """Another model to start or learn from."""

    extend: str | None = option(None, "A run whose classes are kept while those of DATA are added.", shown="none")
    teacher: str | None = option(None, "A run whose answers are learnt beside the labels (distillation).", shown="none")
    temperature: float = option(4.0, "What both logits are divided by when the teacher's answers are learnt.")
    teacher_weight: float = option(0.7, "Share of the loss that the teacher's answers have.")
    features: str | None = option(None, "A run or model whose features --classifier learns from.", shown="none")
    classifier: ClassicalName | None = option(None, "A scikit-learn classifier on --features.", shown="none")

    def __post_init__(self) -> None:
        _expect(self.temperature > 0, "temperature", self.temperature, "a number above 0")
        _expect(0 < self.teacher_weight <= 1, "teacher-weight", self.teacher_weight, "above 0 and at most 1")
        if (self.features is None) != (self.classifier is None):
            raise OptionError("--features and --classifier go together: --features RUN --classifier svm")
        given = [name for name in ("extend", "teacher", "features") if getattr(self, name)]
        if len(given) > 1 and "features" in given:
            raise OptionError(f"--features trains no network, so it does not go with --{given[0]}")


@dataclass(frozen=True)
class MachineOptions:
    """Machine."""

    device: Device = option("auto", "Where to train; auto is a CUDA GPU where there is one.")
    devices: int = option(1, "GPUs, or processes on a CPU, of each machine.")
    nodes: int = option(1, "Machines, each started by torchrun or SLURM.")
    strategy: str = option("auto", "Lightning's strategy: auto, or ddp, fsdp, ... for more than one device.")
    precision: Precision = option("auto", "Numbers to compute with; auto takes what trains fastest here.")
    track: tuple[str, ...] = option((), "Trackers besides TensorBoard and CSV: mlflow, wandb.")

    def __post_init__(self) -> None:
        _expect(self.devices >= 1, "devices", self.devices, "1 or more")
        _expect(self.nodes >= 1, "nodes", self.nodes, "1 or more")
        unknown = [name for name in self.track if name not in TRACKERS]
        _expect(not unknown, "track", ",".join(unknown), " or ".join(TRACKERS))


@dataclass(frozen=True)
class TrainOptions:
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
        frozen, epochs = self.transfer.freeze_epochs, self.recipe.epochs
        fits = frozen is None or epochs is None or frozen <= epochs
        _expect(fits, "freeze-epochs", frozen, f"0 to --epochs ({epochs})")
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
class PretrainedOptions:
    """All options of `edgecls pretrained`."""

    model: str = required(
        "Name of the network: efficientnet_lite0, lite1 or lite2, a torchvision classifier, or timm/NAME."
    )
    image_size: int | None = option(None, "Height and width of the input in pixels.", shown="the weights' own")
    out: Path | None = option(None, "The run folder to make.", shown="runs/<time>-<model>")

    def __post_init__(self) -> None:
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise OptionError(f"--image-size {self.image_size}: expected 8 to 1024 pixels")


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
