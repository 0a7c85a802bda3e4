"""One file to what a look at it tells: size, format, light, sharpness, and hashes to find it again by."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecls import images
from edgecls.decoding.header import read_header
from edgecls.errors import ImageError
from edgecls.images import Pixels
from edgecls.labelled import LabelledImage, Split
from edgecls.prefetch import n_cores, prefetch

SIDE: Final = 24  # pixels of the small copies by which pictures are compared: 1.7 kB for each
_DCT_SIDE: Final = 32
_KEPT: Final = 8  # frequencies down and across
_SHARPNESS_SIDE: Final = 256  # pixels of the shorter side at which blur is judged
_COLOURED: Final = 12  # levels between the channels from which on a pixel has a colour
_WITH_ALPHA: Final = ("RGBA", "LA", "PA", "RGBa", "La")
_PNG, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # how a PNG begins, and where its bits per channel stand
_SOME: Final = 0.002  # share of the pixels that must have one


@dataclass(frozen=True, slots=True)
class Listed:
    """A labelled image and the split that it lies in."""

    image: LabelledImage
    split: Split


@dataclass(frozen=True, slots=True)
class Facts:
    """What one readable file is.

    Attributes:
        height, width: in pixels, turned upright.
        n_bytes: of the file.
        orientation: EXIF's 1 to 8.
        is_grey: whether no pixel to speak of has a colour.
        brightness, contrast: mean and standard deviation of the grey pixels, 0 to 255.
        sharpness: variance of the Laplacian at a fixed size.
        digest, pixels: hashes of the file's bytes and of its pixels.
        hash, mirrored: perceptual hashes of 63 bits, as it is and mirrored.
    """

    listed: Listed
    height: int
    width: int
    format: str
    n_bytes: int
    orientation: int
    is_grey: bool
    has_alpha: bool
    has_16_bits: bool
    brightness: float
    contrast: float
    sharpness: float
    digest: bytes
    pixels: bytes
    hash: int
    mirrored: int


@dataclass(frozen=True)
class Examined:
    """All files of a data set after one pass over them.

    Attributes:
        facts: of those that can be read.
        small: (n, 24, 24, 3) uint8, a small copy of each of these.
        unreadable: the others, with reasons.
    """

    facts: tuple[Facts, ...]
    small: NDArray[np.uint8]
    unreadable: tuple[tuple[Listed, str], ...]


def examine(listed: Sequence[Listed], on_images: Callable[[int], None] = lambda n: None) -> Examined:
    """Read and decode every file once; about two kilobytes of each are kept.

    Args:
        on_images: called as files are done.
    """
    small = np.empty((len(listed), SIDE, SIDE, 3), np.uint8)
    facts: list[Facts] = []
    unreadable: list[tuple[Listed, str]] = []
    for each, found in zip(listed, prefetch(_look, listed, n_threads=n_cores(), ahead=64), strict=True):
        if isinstance(found, str):
            unreadable.append((each, found))
        else:
            small[len(facts)] = found[1]
            facts.append(found[0])
        on_images(1)
    return Examined(tuple(facts), small[: len(facts)], tuple(unreadable))


def _look(listed: Listed) -> tuple[Facts, Pixels] | str:
    """The facts and a small copy, or why the file cannot be read."""
    try:
        data = images.read(listed.image.path)
        picture = images.decode(data)
    except ImageError as error:
        return error.reason
    except MemoryError:
        return "decoding it needs more memory than this process can get"
    header, (kind, has_alpha, has_16_bits) = read_header(data), _kind_of(data)
    height, width = picture.shape[:2]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    small = cast(Pixels, cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    hash_, mirrored = _perceptual(cv2.resize(grey, (_DCT_SIDE, _DCT_SIDE), interpolation=cv2.INTER_AREA))
    coloured = (picture[::4, ::4].max(axis=2) - picture[::4, ::4].min(axis=2)) > _COLOURED
    facts = Facts(
        listed, height, width, kind, len(data), header.orientation if header else 1, bool(coloured.mean() < _SOME),
        has_alpha, has_16_bits,
        float(grey.mean()), float(grey.std()), _sharpness(np.asarray(grey, np.uint8)),
        hashlib.blake2b(data, digest_size=16).digest(),
        hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=16).digest(),
        hash_, mirrored,
    )  # fmt: skip
    return facts, small


def _kind_of(data: bytes) -> tuple[str, bool, bool]:
    """The format, whether parts may be transparent, whether it has 16 bits: by Pillow, which reads the header only."""
    has_16_bits = data.startswith(_PNG) and data[_PNG_DEPTH : _PNG_DEPTH + 1] == b"\x10"  # Pillow hides that of colours
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as opened:
            warnings.simplefilter("ignore")  # of large pictures: this decodes nothing
            has_alpha = opened.mode in _WITH_ALPHA or "transparency" in opened.info
            return opened.format or "?", has_alpha, has_16_bits or opened.mode.startswith("I;16")
    except Exception:  # formats that plug-ins read, which raise whatever they like
        return "?", False, has_16_bits


def _sharpness(grey: Pixels) -> float:
    scale = _SHARPNESS_SIDE / min(grey.shape)
    if scale < 1:
        size = max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _perceptual(grey: NDArray[np.number]) -> tuple[int, int]:
    """63 low frequencies against their median, of the picture and of its mirror image.

    Source: C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010 (the DCT hash).
    """
    low = cv2.dct(grey.astype(np.float32))[:_KEPT, :_KEPT]
    flipped = low * np.where(np.arange(_KEPT) % 2, -1, 1)  # mirroring changes the sign of odd frequencies
    return _bits(low), _bits(flipped)


def _bits(low: NDArray[np.number]) -> int:
    values = low.ravel()[1:]  # without the brightness
    return int.from_bytes(np.packbits(values > np.median(values)).tobytes(), "big")
