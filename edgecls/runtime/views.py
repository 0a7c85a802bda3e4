"""Test-time augmentation: named views of one picture, and one answer of all their answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgecls import images, metrics
from edgecls.errors import OptionError
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing
from edgecls.runtime.options import Combine, TtaOptions
from edgecls.runtime.votes import Floats, majority

PLAIN: Final = "plain"
MAX_VIEWS: Final = 64

_MARGIN: Final = 0.875  # crop fraction that leaves corners to crop, for models that look at the whole picture
_ZOOM: Final = 0.875  # and its square: 224 of 256, 224 of 293
_SHIFT: Final = 1 / 32  # of a side: the one pixel of 32 that CIFAR-10's record runs use
_ANGLE: Final = 8.0  # degrees
_BLUR: Final = 1 / 280  # of a side: 0.8 pixels at 224
_LEAST_BLUR: Final = 0.6  # pixels: the kernel of a smaller one is a single pixel


@dataclass(frozen=True)
class View:
    """One way to look at a picture; as it stands, the plain one that every model is measured with.

    Attributes:
        name: for reports.
        is_mirrored, is_upside_down: left and right, top and bottom exchanged.
        position: of the crop, down and across, 0 to 1.
        crop_fraction: share of the resized picture that the crop keeps; None is the model's own.
        shift: down and right, in shares of a side; the picture is mirrored at its edges.
        angle: counter-clockwise, in degrees; mirrored at the edges likewise.
        blur: sigma of a Gaussian, in shares of a side; 0.6 pixels at the least.
    """

    name: str = PLAIN
    is_mirrored: bool = False
    is_upside_down: bool = False
    position: tuple[float, float] = (0.5, 0.5)
    crop_fraction: float | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    blur: float = 0.0

    def then(self, other: View) -> View:
        """Both at once, for families that are combined. Where both crop, the crop is `other`'s."""
        names = [view.name for view in (self, other) if view.name != PLAIN]
        crops = other if other.position != (0.5, 0.5) or other.crop_fraction else self
        return View(
            "+".join(names) or PLAIN,
            self.is_mirrored != other.is_mirrored,
            self.is_upside_down != other.is_upside_down,
            crops.position,
            crops.crop_fraction,
            (self.shift[0] + other.shift[0], self.shift[1] + other.shift[1]),
            self.angle + other.angle,
            max(self.blur, other.blur),
        )

    def preprocessing(self, own: Preprocessing) -> Preprocessing:
        """The model's own preprocessing, with this view's crop."""
        return own if self.crop_fraction is None else replace(own, crop_fraction=self.crop_fraction)

    def pixels(self, image: Pixels, preprocessing: Preprocessing) -> Pixels:
        """(h, w, 3) uint8 RGB of any size -> this view of it, (*size_hw, 3) uint8.

        Raises:
            ImageError: as `images.resize_and_crop`.
        """
        pixels = images.resize_and_crop(image, self.preprocessing(preprocessing), self.position)
        if self.shift != (0, 0) or self.angle:
            pixels = self._moved(pixels)
        if self.blur:
            pixels = cast(Pixels, cv2.GaussianBlur(pixels, (0, 0), max(_LEAST_BLUR, self.blur * min(pixels.shape[:2]))))
        if self.is_mirrored or self.is_upside_down:
            pixels = pixels[:: -1 if self.is_upside_down else 1, :: -1 if self.is_mirrored else 1]
        return pixels

    def _moved(self, pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.angle, 1.0)
        # whole pixels: a shift by half of one would be a blur
        matrix[:, 2] += [_whole(self.shift[1] * width), _whole(self.shift[0] * height)]
        moved = cv2.warpAffine(pixels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        return cast(Pixels, moved)


def _whole(pixels: float) -> int:
    # one at least, or the view of a small picture is the plain one
    return int(np.sign(pixels)) * round(max(abs(pixels), 1.0))


_MIRROR: Final = View("mirror", is_mirrored=True)
_FLIPPED: Final = View("upside-down", is_upside_down=True)


def _five_crop(own: Preprocessing) -> list[View]:
    fraction = min(own.crop_fraction, _MARGIN)
    corners = {"top-left": (0.0, 0.0), "top-right": (0.0, 1.0), "bottom-left": (1.0, 0.0), "bottom-right": (1.0, 1.0)}
    return [View(), *(View(name, position=at, crop_fraction=fraction) for name, at in corners.items())]


def _scales(own: Preprocessing) -> list[View]:
    wider = own.crop_fraction / _ZOOM
    fractions = [wider if wider <= 1 else own.crop_fraction * _ZOOM**2, own.crop_fraction * _ZOOM]
    return [View(), *(View(f"zoom {own.crop_fraction / f:.2f}", crop_fraction=f) for f in fractions)]


_FAMILIES: Final[dict[str, Callable[[Preprocessing], list[View]]]] = {
    "flip": lambda own: [View(), _MIRROR],
    "flips": lambda own: [View(), _MIRROR, _FLIPPED, _MIRROR.then(_FLIPPED)],
    "five-crop": _five_crop,
    "ten-crop": lambda own: [view.then(flip) for flip in (View(), _MIRROR) for view in _five_crop(own)],
    "shifts": lambda own: [
        View(),
        View("up", shift=(-_SHIFT, 0.0)),
        View("down", shift=(_SHIFT, 0.0)),
        View("left", shift=(0.0, -_SHIFT)),
        View("right", shift=(0.0, _SHIFT)),
    ],
    "scales": _scales,
    "rotate": lambda own: [View(), View("left turn", angle=_ANGLE), View("right turn", angle=-_ANGLE)],
    "blur": lambda own: [View(), View("blur", blur=_BLUR)],
}


def views_of(options: TtaOptions, own: Preprocessing) -> tuple[View, ...]:
    """The views for a model, the plain one first, no two the same.

    Raises:
        OptionError: more than `MAX_VIEWS`.
    """
    found: dict[View, View] = {}
    for parts in product(*(_FAMILIES[family](own) for family in options.families)):
        view = View()
        for part in parts:
            view = view.then(part)
        found.setdefault(replace(view, name=""), view)  # `flip,ten-crop` mirrors twice: the same view again
    if len(found) > MAX_VIEWS:
        raise OptionError(
            f"--tta {','.join(options.families)}: {len(found)} views an image, at most {MAX_VIEWS}; name fewer"
        )
    return tuple(found.values())


def combined(logits: NDArray[np.float32], temperature: float, combine: Combine) -> Floats:
    """The answers for the views of each image -> one probability a label.

    Args:
        logits: (n, n_views, n_classes).
        temperature: what the logits are divided by before they become probabilities.

    Returns:
        (n, n_classes), rows sum to 1. For `vote` the share of the views that answered a label, as `votes.majority`.
    """
    scaled = logits / np.float32(temperature)
    if combine == "logit" or logits.shape[1] == 1:
        return metrics.softmax(scaled.mean(axis=1))
    probabilities = metrics.softmax(scaled)
    if combine == "probability":
        return cast(Floats, probabilities.mean(axis=1))
    return majority(probabilities.transpose(1, 0, 2))
