"""Networks that are worth a look, with what others have published and we have measured of them. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_TORCHVISION: Final = "torchvision, the weights' own metadata"
_TIMM: Final = "timm, results/results-imagenet.csv"
_TENSORFLOW: Final = "TensorFlow TPU models, EfficientNet-Lite"
_IMAGENET: Final = "200 ImageNet photos"
_CIFAR_64: Final = "5,000 CIFAR-10 images at 64 px"
_CIFAR_48: Final = "2,000 CIFAR-10 images"


@dataclass(frozen=True)
class CataloguedNetwork:
    """One network of the table.

    Attributes:
        model: its name for `--model`.
        parameters: millions, with 1,000 classes (10 for networks from scratch).
        macs: millions of multiply-accumulates for one image.
        size: pixels a side that these figures are for.
        top1: published ImageNet top-1 of the weights that it begins with, per cent, at that size; None from scratch.
        source: of `top1`.
        int8_lost: points of top-1 that INT8 loses to FP32, the worse of the two graphs, where we measured it.
        measured_on: the images of `int8_lost`.
    """

    model: str
    parameters: float
    macs: float
    size: int
    top1: float | None = None
    source: str = ""
    int8_lost: float | None = None
    measured_on: str = ""


CATALOGUE: Final = (
    CataloguedNetwork("efficientnet_lite0", 4.65, 385, 224, 75.1, _TENSORFLOW, 0.0, _IMAGENET),
    CataloguedNetwork("efficientnet_lite1", 5.42, 600, 240, 76.7, _TENSORFLOW, 0.0, _IMAGENET),
    CataloguedNetwork("efficientnet_lite2", 6.09, 860, 260, 77.6, _TENSORFLOW, 0.5, _IMAGENET),
    CataloguedNetwork("mobilenet_v2", 3.50, 301, 224, 72.15, _TORCHVISION, 0.55, _CIFAR_48),
    CataloguedNetwork("mobilenet_v3_small", 2.54, 57, 224, 67.67, _TORCHVISION, 0.36, _CIFAR_64),
    CataloguedNetwork("mobilenet_v3_large", 5.48, 217, 224, 75.27, _TORCHVISION, -0.2, _CIFAR_48),
    CataloguedNetwork("timm/mobilenetv4_conv_small", 3.77, 186, 224, 73.76, _TIMM, 0.46, _CIFAR_64),
    CataloguedNetwork("timm/mobilenetv4_conv_medium", 9.72, 828, 224, 79.09, _TIMM),
    CataloguedNetwork("efficientnet_b0", 5.29, 386, 224, 77.69, _TORCHVISION, 0.35, _CIFAR_48),
    CataloguedNetwork("timm/hgnetv2_b0", 6.00, 322, 224, 77.36, _TIMM),
    CataloguedNetwork("timm/repvit_m0_9", 5.10, 817, 224, 79.06, _TIMM),
    CataloguedNetwork("resnet18", 11.7, 1814, 224, 69.76, _TORCHVISION),
    CataloguedNetwork("resnet50", 25.6, 4089, 224, 80.86, _TORCHVISION),
    CataloguedNetwork("resnet9", 0.41, 24, 32, int8_lost=0.3, measured_on=_CIFAR_48),
    CataloguedNetwork("airbench", 0.50, 33, 32),
)

# What `--model` takes for a name
ALIASES: Final = {"fast": "timm/mobilenetv4_conv_small", "accurate": "timm/mobilenetv4_conv_medium"}
