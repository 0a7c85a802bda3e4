"""Networks to train from scratch. Each ends in features; the layer that makes the logits is not theirs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecls.errors import OptionError
from edgecls.train.networks.small_maps import SmallMapConv
from edgecls.train.recipe_options import BatchNorm, LastPool, NetworkOptions, Padding

DROPOUT: Final = 0.2  # of mlp and cnn unless told
_MLP_HIDDEN: Final = (512, 256, 128)
_WIDTH: Final = 16
_AIRBENCH_WIDTH: Final = 32
_LARGEST_GROWTH: Final = 8  # of the channels of cnn, from the first block to the widest
_SMALLEST_MAP: Final = 4  # pixels a side that cnn leaves before pooling, unless told


def scratch_network(options: NetworkOptions, size_hw: tuple[int, int]) -> Linear | Mlp | PlainCnn | ResNet9 | Airbench:
    """The network of a name in `SCRATCH`, with new weights.

    Raises:
        OptionError: pooling would use up the pixels, or an option that the network has no use for.
    """
    dropout = DROPOUT if options.dropout is None else options.dropout
    if options.model == "linear":
        if options.hidden:
            raise OptionError("--hidden with --model linear, which has no hidden layers; use --model mlp")
        return Linear(size_hw)
    if options.model == "mlp":
        hidden = _MLP_HIDDEN if options.hidden is None else options.hidden
        return Mlp(size_hw, hidden, dropout, batch_norm=options.batch_norm != "none")
    if options.model == "cnn":
        return PlainCnn(
            size_hw,
            cnn_channels(options, min(size_hw)),
            convs=options.convs,
            padding=options.padding,
            last_pool=options.last_pool or ("max" if options.hidden else "average"),
            batch_norm=options.batch_norm,
            hidden=options.hidden or (),
            dropout=dropout,
        )
    if options.model == "resnet9":
        return ResNet9(options.width or _WIDTH)
    _expect_pixels(min(size_hw), Airbench.SMALLEST, "airbench")
    return Airbench(options.width or _AIRBENCH_WIDTH)


def _expect_pixels(side: int, smallest: int, model: str) -> None:
    if side < smallest:
        raise OptionError(f"--image-size {side}: {model} needs {smallest} px or more")


def fully_connected(n_in: int, widths: Sequence[int], dropout: float, *, batch_norm: bool = False) -> nn.Sequential:
    """Linear, batch norm where asked for, ReLU and dropout for each width: (n, n_in) -> (n, widths[-1])."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise((n_in, *widths)):
        norm = [nn.BatchNorm1d(c_out)] if batch_norm else []
        layers += [nn.Linear(c_in, c_out), *norm, nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class Linear(nn.Module):
    """The pixels themselves as features, so that the head is logistic regression.

    images: (n, 3, h, w) float, normalised -> features (n, 3 * h * w).
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.n_features = 3 * size_hw[0] * size_hw[1]

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Mlp(nn.Module):
    """Fully connected layers on the pixels.

    images: (n, 3, h, w) float, normalised -> features (n, hidden[-1]).
    """

    def __init__(self, size_hw: tuple[int, int], hidden: Sequence[int], dropout: float, *, batch_norm: bool) -> None:
        super().__init__()
        n_pixels = 3 * size_hw[0] * size_hw[1]
        self.layers = fully_connected(n_pixels, hidden, dropout, batch_norm=batch_norm)
        self.n_features = hidden[-1] if hidden else n_pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))  # type: ignore[no-any-return]


def cnn_channels(options: NetworkOptions, side: int) -> tuple[int, ...]:
    """Channels of each block of cnn: as told, or doubling to eight times, in blocks until the map is about 4 px.

    Raises:
        OptionError: more blocks than the pixels allow.
    """
    told = len(options.channels) if options.channels else options.blocks
    maps: list[int] = []  # pixels a side after each block
    while len(maps) < (told or 8):
        is_last = len(maps) + 1 == told
        side = _map_after_block(
            side, options.convs, options.padding, pools=not (is_last and options.last_pool == "none")
        )
        if side < 1 or (not told and maps and side < _SMALLEST_MAP):
            break
        maps.append(side)
    if len(maps) < (told or 1):
        fewer = "fewer --channels, " if options.channels else f"--blocks {len(maps)}, "
        raise OptionError(
            f"cnn: its convolutions and poolings use up the pixels before block {len(maps) + 1} ends (--convs "
            f"{options.convs}, --padding {options.padding}); use {fewer if maps else ''}--padding same, or a "
            "larger --image-size"
        )
    width = options.width or _WIDTH
    return options.channels or tuple(width * min(2**block, _LARGEST_GROWTH) for block in range(len(maps)))


def _map_after_block(side: int, convs: int, padding: Padding, *, pools: bool) -> int:
    return (side - (2 * convs if padding == "none" else 0)) // (2 if pools else 1)


def _conv(c_in: int, c_out: int, padding: Padding = "same", *, batch_norm: bool = True) -> nn.Sequential:
    """A 3x3 convolution with a batch norm or else a bias, and ReLU."""
    conv = nn.Conv2d(c_in, c_out, 3, padding=1 if padding == "same" else 0, bias=not batch_norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(c_out)] if batch_norm else []), nn.ReLU(inplace=True))


def _block(c_in: int, c_out: int, convs: int, padding: Padding, batch_norm: BatchNorm) -> list[nn.Sequential]:
    each_has_norm = batch_norm == "conv"
    layers = [_conv(c_in if i == 0 else c_out, c_out, padding, batch_norm=each_has_norm) for i in range(convs)]
    if batch_norm == "block":
        layers[-1].insert(1, nn.BatchNorm2d(c_out))  # before the ReLU: there it is folded into the convolution
    return layers


class PlainCnn(nn.Module):
    """Blocks of 3x3 convolutions and a 2x2 max pool, the mean over the map or the whole map, fully connected layers.

    The plain VGG shape (arXiv 1409.1556), with batch norm after every convolution, once a block, or without.

    images: (n, 3, h, w) float, normalised -> features (n, n_features).

    Attributes:
        hidden: the fully connected layers, which drop out behind each; none by default.
    """

    def __init__(
        self,
        size_hw: tuple[int, int],
        channels: Sequence[int],
        *,
        convs: int = 2,
        padding: Padding = "same",
        last_pool: LastPool = "average",
        batch_norm: BatchNorm = "conv",
        hidden: Sequence[int] = (),
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        height, width = size_hw
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise((3, *channels)):
            layers += [*_block(c_in, c_out, convs, padding, batch_norm), nn.MaxPool2d(2)]
        if last_pool == "none":
            layers.pop()
        for layer in layers:
            pools = isinstance(layer, nn.MaxPool2d)
            height, width = (
                _map_after_block(side, 0 if pools else 1, padding, pools=pools) for side in (height, width)
            )
        self.layers = nn.Sequential(*layers)
        self.averages = last_pool == "average"
        n_mapped = channels[-1] if self.averages else channels[-1] * height * width
        self.hidden = fully_connected(n_mapped, hidden, dropout)
        self.n_features = hidden[-1] if hidden else n_mapped

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return self.hidden(x.mean((2, 3)) if self.averages else x.flatten(1))  # type: ignore[no-any-return]


class ResNet9(nn.Module):
    """Nine layers with two residual blocks: the CIFAR-10 speed network of David Page's DAWNBench entry.

    Source: https://myrtle.ai/learn/how-to-train-your-resnet. `width` is 64 there; 16 trains on a laptop.

    images: (n, 3, h, w) float, normalised, 16 px a side or more -> features (n, 8 * width).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prepare = _conv(3, width)
        self.layer1 = nn.Sequential(_conv(width, 2 * width), nn.MaxPool2d(2))
        self.residual1 = nn.Sequential(_conv(2 * width, 2 * width), _conv(2 * width, 2 * width))
        self.layer2 = nn.Sequential(_conv(2 * width, 4 * width), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(_conv(4 * width, 8 * width), nn.MaxPool2d(2))
        self.residual3 = nn.Sequential(_conv(8 * width, 8 * width), _conv(8 * width, 8 * width))
        self.n_features = 8 * width

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.prepare(x))
        x = x + self.residual1(x)
        x = self.layer3(self.layer2(x))
        x = x + self.residual3(x)
        return x.amax((2, 3))


class _AirbenchBlock(nn.Module):
    """(n, c_in, h, w) -> (n, c_out, h // 2, w // 2)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = _dirac_conv(c_in, c_out)
        self.norm1 = _shift_norm(c_out)
        self.conv2 = _dirac_conv(c_out, c_out)
        self.norm2 = _shift_norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def _dirac_conv(c_in: int, c_out: int) -> nn.Conv2d:
    """A 3x3 convolution whose first c_in filters pass their channel on; the others start at random."""
    conv = SmallMapConv(c_in, c_out, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:c_in])
    return conv


def _shift_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm that learns a bias only, and forgets quickly: it sees few steps."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)  # airbench calls it 0.6; its epsilon of 1e-12 is zero in fp16
    norm.weight.requires_grad_(False)
    return norm


class Airbench(nn.Module):
    """The CIFAR-10 speed network of Keller Jordan's airbench94 (arXiv 2404.00498).

    Source: https://github.com/KellerJordan/cifar10-airbench. `width` is 64 there. Its first layer holds 2x2 whitening
    filters that are computed from the training images, not learnt: `initialise_whitening`. Its last pooling, 3x3 on
    the 3 px that 32 px leave, is over the whole map here, so that it takes other sizes.

    images: (n, 3, h, w) float, normalised, 9 px a side or more -> features (n, 4 * width).

    Attributes:
        is_whitened: () bool; the first layer's weight holds whitening filters and stays as it is.
    """

    is_whitened: Tensor

    SMALLEST: Final = 9  # 2x2 without padding leaves 8 px, three poolings 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 2 * 3 * 2 * 2, 2)  # every filter of the 12 values of a patch, and its negative
        self.block1 = _AirbenchBlock(self.whiten.out_channels, width)
        self.block2 = _AirbenchBlock(width, 4 * width)
        self.block3 = _AirbenchBlock(4 * width, 4 * width)
        self.n_features = 4 * width
        self.register_buffer("is_whitened", torch.tensor(False))  # a checkpoint says so too

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(F.gelu(self.whiten(x)))))
        # airbench divides the logits, not the features; for a linear head, and for its learning rate, that is the same
        return x.amax((2, 3)) / 9

    @torch.no_grad()
    def initialise_whitening(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Let the first layer decorrelate 2x2 patches and scale them to unit variance, and freeze its weight.

        Args:
            images: (n, 3, h, w) float, normalised; airbench takes 5,000 of 32 px.
            epsilon: added to the variances, so that flat directions are not blown up.
        """
        patches = F.unfold(images.float(), 2).transpose(1, 2).flatten(0, 1)  # (n_patches, 12)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + epsilon).sqrt()).T.view(-1, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.whiten.weight.requires_grad_(False)
        self.is_whitened.fill_(True)

    def fixed_parameters(self) -> list[nn.Parameter]:
        """What is never trained: the scale of every norm, and the filters once they whiten."""
        scales: list[nn.Parameter] = [each.weight for each in self.modules() if isinstance(each, nn.BatchNorm2d)]
        return [*scales, cast(nn.Parameter, self.whiten.weight)] if self.is_whitened else scales
