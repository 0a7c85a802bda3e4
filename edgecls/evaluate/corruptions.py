"""Pictures as a worse camera, a stronger compression or another light would give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import cv2
import numpy as np

from edgecls import images
from edgecls.errors import ImageError
from edgecls.evaluate.answers import answers_of
from edgecls.images import Pixels
from edgecls.labelled import LabelledImage, stratified_sample
from edgecls.metrics import Figure
from edgecls.prefetch import n_cores, prefetch
from edgecls.progress import Progress
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.pipeline import Frame, Picture, Unreadable

_AHEAD: Final = 16  # damaged pictures in memory, at their full size
_MOST_IMAGES: Final = 500  # of each of the 18 passes; 95 % intervals of 4 points at most


@dataclass(frozen=True)
class Robustness:
    """How one kind of damage at one strength changes the answers.

    Attributes:
        kind: `as they are` for the pictures without damage, which come first.
        strength: in words; empty for these.
        kept: share of the answers that are the same as without damage.
    """

    kind: str
    strength: str
    accuracy: Figure
    kept: float


def _jpeg(picture: Pixels, quality: float) -> Pixels:
    data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    return np.ascontiguousarray(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


def _blur(picture: Pixels, percent: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), percent / 100 * min(picture.shape[:2])), np.uint8)


def _noise(picture: Pixels, sd: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sd, picture.shape).astype(np.float32)
    noisy: Pixels = np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8)
    return noisy


def _turn(picture: Pixels, degrees: float) -> Pixels:
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return np.asarray(cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101), np.uint8)


def _brighten(picture: Pixels, factor: float) -> Pixels:
    lit: Pixels = np.clip(np.rint(picture * np.float32(factor)), 0, 255).astype(np.uint8)
    return lit


def _strengths(
    damage: Callable[[Pixels, float], Pixels], shown: str, *strengths: float
) -> Mapping[str, Callable[[Pixels], Pixels]]:
    return {shown.format(each): lambda picture, each=each: damage(picture, each) for each in strengths}  # type: ignore[misc]


# kind -> strength in words -> what is done; blur goes with the size of the picture, so that it looks the same at any
CORRUPTIONS: Final[Mapping[str, Mapping[str, Callable[[Pixels], Pixels]]]] = {
    "JPEG": _strengths(_jpeg, "quality {:.0f}", 50, 20, 8),
    "blur": _strengths(_blur, "over {:g} % of the shorter side", 0.5, 1, 2),
    "noise": _strengths(_noise, "deviation of {:.0f} of 255", 8, 20, 40),
    "rotation": _strengths(_turn, "by {:.0f} degrees", 5, 15, 30),
    "darker": _strengths(_brighten, "{:g} of the light", 0.7, 0.4, 0.2),
    "brighter": _strengths(_brighten, "{:g} times the light", 1.3, 1.8, 2.5),
}


def robustness_of(
    classifier: Classifier, labelled: Sequence[LabelledImage], progress: Progress
) -> tuple[Robustness, ...]:
    """Measure every kind of damage at three strengths, on 500 images at most, each class in proportion."""
    sample = stratified_sample(labelled, _MOST_IMAGES, 0)
    (plain,) = answers_of([classifier], sample, progress, title="as they are")
    rows = [Robustness("as they are", "", Figure.share(float(plain.is_right.mean()), len(plain.images)), 1.0)]
    before = dict(zip(plain.images, plain.predicted, strict=True))
    for kind, strengths in CORRUPTIONS.items():
        for strength, damage in strengths.items():
            pictures = prefetch(partial(_damaged, damage), plain.images, n_threads=n_cores(), ahead=_AHEAD)
            (answers,) = answers_of(
                [classifier], plain.images, progress, title=f"{kind}, {strength}", pictures=pictures
            )
            accuracy = Figure.share(float(answers.is_right.mean()), len(answers.images))
            kept = [before[image] == index for image, index in zip(answers.images, answers.predicted, strict=True)]
            rows.append(Robustness(kind, strength, accuracy, float(np.mean(kept))))
    return tuple(rows)


def _damaged(damage: Callable[[Pixels], Pixels], image: LabelledImage) -> Picture:
    """The damage is done to the picture at its full size, before it is made fit for the network."""
    name = str(image.path)
    try:
        return Frame(name, damage(images.decode(images.read(image.path))))
    except ImageError as error:
        return Unreadable(name, error.reason)
