"""Small convolutional networks to train from scratch. Each ends in pooled features; the head is not theirs."""

from __future__ import annotations

import math

from torch import Tensor, nn

_SMALLEST_MAP = 4  # pixels a side that are left before global pooling


def _conv(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class PlainCnn(nn.Module):
    """Blocks of two 3x3 convolutions and a 2x2 max pool, width doubling to eight times, then average pooling.

    The plain VGG shape (arXiv 1409.1556) with batch norm; blocks are added until the map is about 4 px.

    images: (n, 3, h, w) float, normalised -> features (n, n_features).
    """

    def __init__(self, size_hw: tuple[int, int], width: int) -> None:
        super().__init__()
        n_blocks = max(1, int(math.log2(min(size_hw) / _SMALLEST_MAP)))
        layers: list[nn.Module] = []
        c_in = 3
        for block in range(n_blocks):
            c_out = width * min(2**block, 8)
            layers += [_conv(c_in, c_out), _conv(c_out, c_out), nn.MaxPool2d(2)]
            c_in = c_out
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.n_features = c_in

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.layers(x).mean((2, 3)))  # type: ignore[no-any-return]


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
