"""Augmentation on batches of uint8 pixels, after the preprocessing that validation and prediction share.

A picture is resampled once at most: whatever moves its pixels is first composed into one matrix per picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from edgecls.train.augmentation_names import OPERATIONS, operations_of

# 8 pictures of 224 px, whose floats are 5 MB: 32 at once take 1.4 times as long, in fresh memory for every step. The
# same on a GPU, so that it draws what the CPU draws.
_CHUNK: Final = 8 * 224 * 224  # pixels

_SHIFT: Final = 1 / 16  # of the side, in both directions
CROP_AREA: Final = 0.35  # of the picture, or more, unless told
_CROP_ASPECT: Final = 4 / 3  # of the crop to that of the picture, at most; its inverse at least
_ROTATION: Final = 15.0  # degrees, both ways
_AFFINE: Final = (10.0, 10.0, 0.1, 1.1)  # degrees of rotation and of shear, share of the side, largest scale
_JITTER: Final = 0.3  # brightness, contrast and saturation are multiplied by 0.7 to 1.3
_HUE: Final = 10.0  # degrees, both ways
_GREY: Final = 0.2  # share of the pictures
_BLUR: Final = 0.5  # share of the pictures
_BLUR_SIGMA: Final = 0.01  # of the shorter side, or less
_ERASED_AREA: Final = (0.02, 0.33)  # these two as in the paper
_ERASED_ASPECT: Final = 1 / 0.3

_LUMA: Final = torch.tensor([0.299, 0.587, 0.114])
# NTSC television's: a turn of the first two changes the hue and leaves the third, the luma. Grey has none of the two.
_IQY: Final = torch.stack([torch.tensor([0.5959, -0.2746, -0.3213]), torch.tensor([0.2115, -0.5227, 0.3112]), _LUMA])
_FILL: Final = [124, 116, 104]  # the mean of ImageNet's pixels, for what a policy leaves empty; its default is black


@dataclass(frozen=True)
class _Draws:
    """Random numbers for a batch, one for each picture, all from one CPU generator."""

    n: int
    height: int
    width: int
    generator: torch.Generator
    mirrored: Tensor | None = None
    crop_area: float = CROP_AREA

    def uniform(self, low: float, high: float) -> Tensor:
        """(n,) float32."""
        return low + (high - low) * torch.rand(self.n, generator=self.generator)

    def whole(self, most: int) -> Tensor:
        """(n,) float32, whole numbers from -most to most."""
        return torch.randint(-most, most + 1, (self.n,), generator=self.generator).float()

    def chance(self, share: float) -> Tensor:
        """(n,) bool."""
        return torch.rand(self.n, generator=self.generator) < share


# Geometry. Each operation draws (n, 3, 3) matrices that say where the pixel at (x, y, 1) comes from, in pixels from the
# middle. Their product from left to right is one operation after the other.

_ENTRIES: Final = {"xx": (0, 0), "xy": (0, 1), "x": (0, 2), "yx": (1, 0), "yy": (1, 1), "y": (1, 2)}


def _matrices(n: int, **entries: Tensor) -> Tensor:
    """(n, 3, 3) identities with some entries replaced, each (n,): xy is what x takes from y, x alone is the move."""
    matrices = torch.eye(3).repeat(n, 1, 1)
    for name, values in entries.items():
        row, column = _ENTRIES[name]
        matrices[:, row, column] = values
    return matrices


def _turns(degrees: Tensor) -> Tensor:
    cosine, sine = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    return _matrices(len(degrees), xx=cosine, xy=-sine, yx=sine, yy=cosine)


def _crop(draws: _Draws) -> Tensor:
    # the crop of Inception training, arXiv 1409.4842; a part is enlarged, so nothing can alias
    area, root = draws.uniform(draws.crop_area, 1).sqrt(), math.log(_CROP_ASPECT) / 2
    stretch = draws.uniform(-root, root).exp()
    width, height = (area * stretch).clamp(max=1), (area / stretch).clamp(max=1)
    x = draws.uniform(-0.5, 0.5) * (1 - width) * draws.width
    y = draws.uniform(-0.5, 0.5) * (1 - height) * draws.height
    return _matrices(draws.n, xx=width, yy=height, x=x, y=y)


def _shift(draws: _Draws) -> Tensor:
    x, y = draws.whole(round(_SHIFT * draws.width)), draws.whole(round(_SHIFT * draws.height))
    return _matrices(draws.n, x=x, y=y)


def _flip(draws: _Draws) -> Tensor:
    mirrored = draws.chance(0.5) if draws.mirrored is None else draws.mirrored.cpu()
    return _matrices(draws.n, xx=1 - 2 * mirrored.float())


def _vflip(draws: _Draws) -> Tensor:
    return _matrices(draws.n, yy=1 - 2 * draws.chance(0.5).float())


def _rotate(draws: _Draws) -> Tensor:
    return _turns(draws.uniform(-_ROTATION, _ROTATION))


def _affine(draws: _Draws) -> Tensor:
    degrees, shear, share, most = _AFFINE
    scale = draws.uniform(-math.log(most), math.log(most)).exp()
    x, y = draws.uniform(-share, share) * draws.width, draws.uniform(-share, share) * draws.height
    skewed = _matrices(draws.n, xy=torch.deg2rad(draws.uniform(-shear, shear)).tan())
    return _matrices(draws.n, xx=scale, yy=scale, x=x, y=y) @ _turns(draws.uniform(-degrees, degrees)) @ skewed


def _gathered(images: Tensor, matrices: Tensor) -> Tensor:
    """Whole moves and mirrorings, without resampling; the border is mirrored. (n, h, w, 3) uint8 in and out."""
    n, height, width, _ = images.shape
    columns = _sources(matrices[:, 0, 0], matrices[:, 0, 2], width)
    rows = _sources(matrices[:, 1, 1], matrices[:, 1, 2], height) + height * torch.arange(n)[:, None]
    pixels = (rows * width).to(images.device)[:, :, None] + columns.to(images.device)[:, None, :]
    # one index for a pixel: three of them, for image, row and column, take more than twice as long
    return images.reshape(-1, 3).index_select(0, pixels.flatten()).view(images.shape)


def _sources(signs: Tensor, moves: Tensor, size: int) -> Tensor:
    """(n, size) int64: for every row or column the one it comes from, mirrored back into 0..size-1."""
    middle = (size - 1) / 2
    source = (signs[:, None] * (torch.arange(size) - middle) + moves[:, None] + middle).long().abs()
    return torch.where(source >= size, 2 * (size - 1) - source, source)


def _resampled(images: Tensor, matrices: Tensor) -> Tensor:
    """Bilinear, the border mirrored. (n, h, w, 3) uint8 -> (n, 3, h, w) float32, 0 to 255."""
    _, height, width, _ = images.shape
    sides = torch.tensor([width, height])
    first, second, move = (matrices[:, :2] / (sides[:, None] / 2)).to(images.device)[..., None, None].unbind(2)
    x = torch.arange(width, device=images.device) + (0.5 - width / 2)
    y = torch.arange(height, device=images.device) + (0.5 - height / 2)
    # a plane of x and one of y: F.affine_grid, a product with (h * w, 3), takes ten times as long, as long as sampling
    grid = first * x + (second * y[:, None] + move)
    return F.grid_sample(_planes(images), grid.permute(0, 2, 3, 1), padding_mode="reflection", align_corners=False)


def _planes(images: Tensor) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) float32, 0 to 255."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _write_pixels(planes: Tensor, result: Tensor) -> None:
    """(n, 3, h, w) float32, 0 to 255, into (n, h, w, 3) uint8, rounded."""
    planes.add_(0.5)
    for channel in range(3):  # plane by plane takes a third of the time that permute(...).contiguous() does
        result[..., channel] = planes[:, channel]


# Tones. Each operation takes and gives (n, 3, h, w) float32 planes, 0 to 255.


def _colour(planes: Tensor, draws: _Draws) -> Tensor:
    # all four jitters are linear in a pixel's three values, so they are one matrix; hue and saturation keep the luma,
    # so the mean that contrast is relative to is that of the picture as it came
    brightness, contrast, saturation = (draws.uniform(1 - _JITTER, 1 + _JITTER)[:, None, None] for _ in range(3))
    hue = torch.linalg.inv(_IQY) @ _turns(draws.uniform(-_HUE, _HUE)) @ _IQY
    colours = (saturation * torch.eye(3) + (1 - saturation) * _LUMA.expand(3, 3)) @ hue
    means = _LUMA.to(planes.device) @ planes.mean((2, 3)).T
    offsets = ((1 - contrast) * brightness).to(planes.device) * means[:, None, None]
    matrices = (brightness * contrast * colours).to(planes.device)
    return torch.baddbmm(offsets, matrices, planes.flatten(2)).view(planes.shape).clamp_(0, 255)


def _grey(planes: Tensor, draws: _Draws) -> Tensor:
    chosen = draws.chance(_GREY)[:, None, None]
    matrices = torch.where(chosen, _LUMA.expand(3, 3), torch.eye(3)).to(planes.device)
    return (matrices @ planes.flatten(2)).view(planes.shape)


def _blur(planes: Tensor, draws: _Draws) -> Tensor:
    chosen = draws.chance(_BLUR).nonzero()[:, 0].to(planes.device)
    if not len(chosen):
        return planes
    most = max(1.0, _BLUR_SIGMA * min(draws.height, draws.width))
    sigmas = draws.uniform(0.1, most).to(planes.device)[chosen]
    radius = math.ceil(3 * most)
    at = torch.arange(-radius, radius + 1, device=planes.device)
    weights = torch.exp(-(at**2) / (2 * sigmas[:, None] ** 2))
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0)
    # the planes of all pictures as the channels of one, each with its own kernel: columns first, then rows
    padded = F.pad(planes[chosen], [radius] * 4, mode="reflect").flatten(0, 1)
    blurred = F.conv2d(padded, weights[:, None, :, None], groups=len(weights))
    blurred = F.conv2d(blurred, weights[:, None, None, :], groups=len(weights))
    return planes.index_copy(0, chosen, blurred.view(-1, *planes.shape[1:]))


_GEOMETRY: Final[Mapping[str, Callable[[_Draws], Tensor]]] = {
    "crop": _crop, "shift": _shift, "rotate": _rotate, "affine": _affine, "flip": _flip, "vflip": _vflip,
}  # fmt: skip
_EXACT: Final = frozenset({"shift", "flip", "vflip"})  # alone or together they need no resampling
_TONES: Final[Mapping[str, Callable[[Tensor, _Draws], Tensor]]] = {"colour": _colour, "grey": _grey, "blur": _blur}
# From (3, h, w) uint8 to the same. One picture after the other, drawing from torch's global generator. At 224 px on one
# thread of a shared Xeon trivial takes 1.7 ms a picture and augmix 9 ms, where crop and flip take 1.2 ms.
_POLICIES: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "trivial": v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=_FILL),  # arXiv 2103.10158
    "augmix": v2.AugMix(fill=_FILL),  # arXiv 1912.02781
}


@dataclass(frozen=True)
class Augmentation:
    """Random views of a batch, drawn from the generator alone.

    Attributes:
        operations: names from OPERATIONS, whose order they are applied in:
            crop: cut out a random `crop_area` of the area or more (aspect 3/4 to 4/3), enlarged; arXiv 1409.4842;
            shift: move by up to 1/16 of the side in both axes, the border mirrored;
            rotate: by up to 15 degrees;
            affine: rotate and shear by up to 10 degrees, move by up to 1/10, scale by up to 1.1;
            flip, vflip: mirror left and right, top and bottom, every second picture;
            colour: brightness, contrast and saturation times 0.7 to 1.3, hue by up to 10 degrees;
            grey: a fifth of the pictures; blur: Gaussian, a half of them;
            trivial: TrivialAugment (wide), arXiv 2103.10158; augmix: AugMix, arXiv 1912.02781.
        erase: share of the pictures of which a random rectangle of 2 to 33 % is replaced by noise; arXiv 1708.04896.
        crop_area: smallest share of the area that `crop` keeps, above 0 and up to 1.
    """

    operations: tuple[str, ...] = ()
    erase: float = 0.0
    crop_area: float = CROP_AREA

    def __call__(self, images: Tensor, generator: torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        """images: (n, h, w, 3) uint8 on any device -> the same shape, dtype and device.

        Args:
            images: left as they are.
            generator: on the CPU.
            mirrored: (n,) bool, which images `flip` mirrors, in place of a draw. Those that the last epoch did not
                mirror show both sides within two epochs (alternating flip, arXiv 2404.00498).
        """
        n, height, width, _ = images.shape
        draws = _Draws(n, height, width, generator, mirrored, self.crop_area)
        images = self._retoned(images, draws)
        for name in self._names(_POLICIES):
            images = _each(_POLICIES[name], images, generator)
        return _erased(images, self.erase, draws) if self.erase else images

    def _retoned(self, images: Tensor, draws: _Draws) -> Tensor:
        geometry, tones = self._names(_GEOMETRY), self._names(_TONES)
        moves = reduce(torch.matmul, (_GEOMETRY[name](draws) for name in geometry), _matrices(draws.n))
        exact = _EXACT.issuperset(geometry)
        if exact and geometry:
            images = _gathered(images, moves)
        if exact and not tones:
            return images
        result = torch.empty_like(images)
        some = max(1, _CHUNK // (draws.height * draws.width))
        parts = (torch.split(whole, some) for whole in (images, moves, result))
        for part, matrices, changed in zip(*parts, strict=True):
            planes = _planes(part) if exact else _resampled(part, matrices)
            for name in tones:
                planes = _TONES[name](planes, replace(draws, n=len(part)))
            _write_pixels(planes, changed)
        return result

    def _names(self, table: Mapping[str, object]) -> list[str]:
        return [name for name in OPERATIONS if name in table and name in self.operations]


def _each(policy: Callable[[Tensor], Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
    # On the CPU, where one global generator is all there is to put back; torch.manual_seed would seed the GPUs' too.
    # Other threads must not draw from it meanwhile.
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        changed = [policy(image) for image in images.cpu().permute(0, 3, 1, 2).contiguous()]
    return torch.stack(changed).permute(0, 2, 3, 1).contiguous().to(images.device)


def _erased(images: Tensor, share: float, draws: _Draws) -> Tensor:
    root = math.log(_ERASED_ASPECT) / 2
    area, stretch = draws.uniform(*_ERASED_AREA).sqrt(), draws.uniform(-root, root).exp()
    rows = _spans(area * stretch, draws.uniform(0, 1), draws.height)
    columns = _spans(area / stretch, draws.uniform(0, 1), draws.width)
    chosen = draws.chance(share).nonzero()[:, 0].to(images.device)
    erased = rows.to(images.device)[chosen, :, None, None] & columns.to(images.device)[chosen, None, :, None]
    # one picture of noise for the whole batch: drawing it is what costs
    noise = torch.randint(256, (draws.height, draws.width, 3), dtype=torch.uint8, generator=draws.generator)
    return images.index_copy(0, chosen, torch.where(erased, noise.to(images.device), images[chosen]))


def _spans(shares: Tensor, places: Tensor, size: int) -> Tensor:
    """(n, size) bool: true within a span of this share of the side, one pixel at least, that lies within the side."""
    lengths = (shares * size).round().clamp(1, size)[:, None]
    starts = (places[:, None] * (size + 1 - lengths)).floor()
    at = torch.arange(size)
    return (at >= starts) & (at < starts + lengths)


def augmentation(names: Sequence[str], erase: float = 0.0, crop_area: float | None = None) -> Augmentation:
    """What these presets and operations do together, in any order.

    Args:
        crop_area: smallest share of the area that the crop keeps; None for the usual one.

    Raises:
        OptionError: as `operations_of`.
    """
    return Augmentation(operations_of(names), erase, CROP_AREA if crop_area is None else crop_area)
