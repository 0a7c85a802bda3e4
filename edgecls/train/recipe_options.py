"""Which network is trained, and how: the part of the options of `edgecls train` that makes its recipe. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from edgecls.errors import OptionError
from edgecls.manifest import Interpolation, Resize
from edgecls.options import Options, Rule, above, at_least, below, between, option
from edgecls.train.augmentation_names import operations_of
from edgecls.train.catalogue import ALIASES

SCRATCH: Final = ("linear", "mlp", "cnn", "resnet9", "airbench")
LITE_NAMES: Final = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
TIMM_PREFIX: Final = "timm/"
IMAGENET: Final = "imagenet"
NONE: Final = "none"
SIZES: Final = Rule(
    lambda sides: len(sides) <= 2 and all(8 <= side <= 1024 for side in sides),
    "8 to 1024 pixels, one number or height,width",
)

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["cosine", "onecycle", "linear", "step", "plateau", "constant"]
BatchNorm = Literal["conv", "block", "none"]
Padding = Literal["same", "none"]
LastPool = Literal["average", "max", "none"]
Balance = Literal["none", "root", "weights", "sampling"]
Monitor = Literal["accuracy", "balanced-accuracy", "f1", "loss"]
NormStatistics = Literal["learn", "keep"]


def _is_stage(text: str) -> bool:
    number = text.removeprefix("last:")
    return bool(text) and (number == text or (number.isdecimal() and int(number) > 0))


@dataclass(frozen=True)
class NetworkOptions(Options):
    """Network."""

    model: str = option(
        "efficientnet_lite0", "A network from scratch (linear, mlp, cnn, resnet9, airbench), efficientnet_lite0, lite1 "
        "or lite2, a torchvision classifier, or timm/NAME; fast or accurate for those of edgecls models."
    )  # fmt: skip
    weights: str | None = option(
        None, "What the network begins with: imagenet, none, or a state dict file.", shown="imagenet; none from scratch"
    )
    image_size: tuple[int, ...] | None = option(
        None, "Height and width of the network's input in pixels; one number for a square.",
        shown="the weights' own, or four times the pictures' where they are small; from scratch 32 to 128",
        rule=SIZES,
    )  # fmt: skip
    width: int | None = option(
        None,
        "Channels of the first layer of cnn, resnet9 and airbench.",
        shown="16; 32 for airbench",
        rule=at_least(1, " channels"),
    )
    blocks: int | None = option(
        None, "Blocks of cnn, each ending in a pooling.", shown="until the map is 4 px a side", rule=between(1, 8)
    )
    convs: int = option(2, "Convolutions in each block of cnn.", rule=between(1, 8))
    channels: tuple[int, ...] | None = option(
        None, "Channels of each block of cnn, such as 20,64, in place of --width and --blocks.",
        shown="doubling, up to eightfold",
        rule=Rule(lambda widths: 1 <= len(widths) <= 8 and min(widths) >= 1, "1 to 8 widths of 1 or more"),
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
        rule=Rule(lambda widths: min(widths, default=1) >= 1, "widths of 1 or more"),
    )  # fmt: skip
    dropout: float | None = option(
        None, "Share of the inputs of every fully connected layer that is dropped.",
        shown="0.5 while the backbone is frozen, 0.2 for mlp and cnn, else 0",
        rule=below(1),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "model", ALIASES.get(self.model, self.model))  # a recipe says which one it was
        if self.model in SCRATCH and self.weights == IMAGENET:
            raise OptionError(f"--weights imagenet: there are none for {self.model}; use --weights none")
        if self.channels is not None and not (self.width is None and self.blocks is None):
            shown = ",".join(map(str, self.channels))
            raise OptionError(f"--channels {shown} says what --width and --blocks say; leave those out")

    @property
    def resolved_weights(self) -> str:
        return self.weights or (NONE if self.model in SCRATCH else IMAGENET)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width that were asked for."""
        return (self.image_size[0], self.image_size[-1]) if self.image_size else None


@dataclass(frozen=True)
class GeometryOptions(Options):
    """How a picture becomes the input."""

    resize: Resize | None = option(
        None, "How a picture gets the input's shape: shortest keeps its proportions and cuts off what is too long, "
        "squash changes them, pad keeps them and adds a white border.", shown="squash, which shows all of it",
    )  # fmt: skip
    crop: float | None = option(
        None, "Share of each side of the resized picture that the centre crop keeps.",
        shown="1; with shortest the weights' own, mostly 0.875, and 1 from scratch",
        rule=above(0, most=1),
    )  # fmt: skip
    interpolation: Interpolation | None = option(
        None, "How the resize computes a pixel; from a two-fold shrink on it is always area.",
        shown="the weights' own, mostly bilinear",
    )  # fmt: skip


@dataclass(frozen=True)
class TransferOptions(Options):
    """Transfer from trained weights."""

    freeze_epochs: int | None = option(
        None, "How many of the epochs train the new head alone, on features that are computed once.",
        shown="20 with trained weights (at most half of --epochs), else 0",
        rule=at_least(0),
    )  # fmt: skip
    unfreeze: str = option(
        "all",
        "What is trained after the head: all weights, last:N stages, or all from a named stage on.",
        rule=Rule(_is_stage, "all, last:N with N of 1 or more, or a stage"),
    )
    fine_tune_lr: float | None = option(
        None,
        "Highest learning rate once the backbone is unfrozen.",
        shown="0.0005; 0.001 for sgd",
        rule=above(0, below=100),
    )
    layer_decay: float | None = option(
        None,
        "The rate of a stage as a share of the rate of the stage behind it.",
        shown="0.85 with trained weights, else 1",
        rule=above(0, most=1),
    )
    norm_statistics: NormStatistics | None = option(
        None,
        "What batch norms of trained weights do: keep the statistics of their first training, or learn new ones.",
        shown="keep",
    )


@dataclass(frozen=True)
class RecipeOptions(Options):
    """Recipe."""

    epochs: int | None = option(
        None, "Passes over the training images, those of the head among them.",
        shown="15 from scratch; else 20 for the head and 4 to 40 more, fewer where there are more pictures; with "
        "--minutes as many as fit",
        rule=at_least(1),
    )  # fmt: skip
    minutes: float | None = option(
        None,
        "Plan the training into this many minutes, from the start of the command to the finished model.",
        shown="no limit",
        rule=above(0, most=60 * 24 * 30),
    )
    epoch_images: int | None = option(
        None,
        "Images between two validations, which end an epoch.",
        shown="all training images; fewer with --minutes",
        rule=at_least(2),
    )
    batch_size: int | None = option(
        None,
        "How many images make one step, on all devices together.",
        shown="128 up to 64 px (256 for airbench), else 32",
        rule=at_least(2, "; batch norm cannot train on one"),
    )
    lr: float | None = option(
        None, "Highest learning rate of the first phase.",
        shown="0.003; from scratch sgd 0.1 (airbench 0.19) at batch 128, adam 0.001, linear 0.0001",
        rule=above(0, below=100),
    )  # fmt: skip
    optimizer: Optimizer | None = option(
        None,
        "What moves the weights: sgd (with Nesterov momentum), adam or adamw.",
        shown="from scratch sgd, adamw for linear, adam for layers without batch norm; else adamw",
    )
    momentum: float | None = option(None, "Momentum of sgd.", shown="0.9; 0.85 for airbench", rule=below(1))
    weight_decay: float | None = option(
        None,
        "Weight decay of kernels and matrices; norms and biases have none.",
        shown="0.0005 for sgd (0.0013 for airbench), 0.05 for adamw, 0 for adam",
        rule=below(1),
    )
    schedule: Schedule | None = option(
        None, "How the rate falls after warm-up; onecycle moves the momentum too.", shown="cosine; linear for airbench"
    )
    warmup: float | None = option(
        None,
        "Share of the steps in which the rate rises to its peak.",
        shown="0.5 with trained weights, else 0.2",
        rule=below(1),
    )
    label_smoothing: float | None = option(
        None, "Share of each target spread over all classes.", shown="0.1; 0.2 for airbench", rule=below(1)
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
    clip: float = option(0.0, "The gradient is made no longer than this norm; 0 is no limit.", rule=at_least(0))
    accumulate: int = option(1, "Batches whose gradients make one step.", rule=at_least(1))
    ema: float | None = option(
        None, "Decay of a moving average of the weights, such as 0.99, that is judged and kept; 0 for none.",
        shown="0.9 where all published weights are fine-tuned without --minutes, else 0",
        rule=below(1),
    )  # fmt: skip
    lookahead: int | None = option(
        None, "Steps after which the weights return to their slow average (Lookahead); 0 never.",
        shown="5 for airbench, else 0",
        rule=at_least(0, " (0 is never)"),
    )  # fmt: skip
    patience: int = option(
        10,
        "Epochs without a better validation figure before a phase stops; 0 never stops.",
        rule=at_least(0, " (0 never stops)"),
    )
    find_lr: bool = option(False, "Look for the peak learning rate first (learning-rate range test).")
    schedule_at: tuple[float, ...] | None = option(
        None, "Share of the schedule that is over at the end of each epoch, as a training with --minutes records it.",
        shown="even steps",
        rule=Rule(lambda shares: all(0 < share <= 1 for share in shares), "shares above 0 and up to 1"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.find_lr and self.lr is not None:
            raise OptionError("--find-lr with --lr: the one looks for what the other says; leave one of them out")


@dataclass(frozen=True)
class AugmentOptions(Options):
    """Augmentation."""

    augment: tuple[str, ...] | None = option(
        None, "How training pictures are varied: none, shift, light, standard, trivial, augmix; or by name: crop, "
        "flip, vflip, rotate, affine, colour, grey, blur.", shown="light",
    )  # fmt: skip
    crop_area: float | None = option(
        None,
        "Smallest share of a picture's area that the crop of --augment keeps.",
        shown="0.35",
        rule=above(0, most=1),
    )
    mixup: float = option(
        0.0,
        "Mix pairs of pictures; the number is the parameter of the beta distribution, such as 0.2.",
        rule=at_least(0),
    )
    cutmix: float = option(
        0.0, "Paste a part of another picture; the number is the same parameter, such as 1.", rule=at_least(0)
    )
    erase: float = option(0.0, "Share of the pictures of which a random rectangle is erased.", rule=between(0, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        operations = () if self.augment is None else operations_of(self.augment)
        if self.crop_area is not None and "crop" not in operations:
            raise OptionError(f"--crop-area {self.crop_area}: nothing is cropped; add --augment crop, or leave it out")
