"""Files to pixels: find, decode, orient, resize, crop. The only preprocessing there is.

Training's validation, calibration, the golden answers and prediction all come through here, so a model
sees on the device what it saw while it was measured. Training adds its augmentation afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgecls.errors import ImageError
from edgecls.image_header import ImageHeader, read_header
from edgecls.manifest import Preprocessing

Pixels = NDArray[np.uint8]

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"})

MAX_PIXELS: Final = 178_956_970  # what Pillow refuses as a decompression bomb: 512 MiB of RGB
MAX_RESIZED_PIXELS: Final = 1 << 24  # a 1 x 10,000 strip would be 256 x 2,560,000 after the resize

# JPEG can be decoded at 1/2, 1/4 or 1/8 for less work, by leaving out high DCT frequencies. It is used where what is
# left is still twice as large as the resize asks for, so that most of the shrink is the same box filter as after full
# decoding: 99.7 % of top-1 answers agree. Down to once as large, 93.7 % did; see docs/preprocessing.md.
_REDUCTIONS: Final = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
_JPEG_FLAGS: Final = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

_INTERPOLATIONS: Final = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


def natural_key(name: str) -> tuple[str, str]:
    """Sort key with numbers by value (`img2` before `img10`) and case last, the same on every system.

    A number becomes its length and its digits behind a character that sorts before all text: 100,000 names need
    10 MB of keys so, where lists of parts took 60.
    """
    return re.sub(r"\d+", _number_key, name.casefold()), name


def _number_key(digits: re.Match[str]) -> str:
    value = str(int(digits.group()))
    return f"\0{chr(len(value))}{value}"


def find_images(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder in natural order: a folder's own files, then its sub-folders.

    Files are told by suffix (`SUFFIXES`, any case); names that start with a dot are skipped. A *folder*
    that is named like an image is yielded too, and not walked: it must show up as an error, not vanish.
    Symbolic links are followed; a folder met a second time (a link to above) is not walked again.
    """
    return (Path(inside, name) for inside, names in walk(folder) for name in names if has_image_suffix(name))


def find_others(folder: Path) -> Iterator[Path]:
    """Yield the visible files below a folder that `find_images` passes over, in the same order."""
    return (Path(inside, name) for inside, names in walk(folder) for name in names if not has_image_suffix(name))


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder from `folder` down with the names of its visible files, in the order of `find_images`."""
    yield from _walk(str(folder), set())


def _walk(folder: str, walked: set[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in walked:
        return
    walked.add((status.st_dev, status.st_ino))
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:  # names are kept, entries are not: they hold the whole path each
        for entry in entries:
            if not entry.name.startswith("."):
                is_walked = not has_image_suffix(entry.name) and entry.is_dir()
                (folders if is_walked else files).append(entry.name)
    yield folder, sorted(files, key=natural_key)
    for name in sorted(folders, key=natural_key):
        yield from _walk(os.path.join(folder, name), walked)


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read(path: str | Path) -> bytes:
    """The bytes of one file.

    Raises:
        ImageError: missing, a folder, or not permitted.
    """
    try:
        with open(os.fspath(path), "rb") as file:
            return file.read()
    except IsADirectoryError as error:
        raise ImageError("it is a folder, not a file", str(path)) from error
    except ValueError as error:  # a NUL, which no file name has
        raise ImageError(f"cannot be read: {error}", str(path)) from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}", str(path)) from error


def decode(data: bytes, *targets: Preprocessing) -> Pixels:
    """Decode a whole file to upright RGB.

    EXIF orientation is applied; grey and palette become RGB; 16 bits are scaled to 8; CMYK is converted;
    transparency is composited on the preprocessing's background (white where there is none).

    Args:
        data: the bytes of a JPEG, PNG, WebP, BMP or TIFF file (the first frame or page of it).
        targets: where given, a JPEG may be decoded at reduced scale, twice what each of them asks for or more.
            They must have one background.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        ImageError: empty, truncated, damaged, not an image, or more than `MAX_PIXELS`.
    """
    header = read_header(data)
    if header.height * header.width > MAX_PIXELS:
        raise ImageError(f"too large: {header.width} x {header.height} pixels, at most {MAX_PIXELS:,} are read")
    flags = _JPEG_FLAGS
    if header.format == "JPEG":
        flags = _reduced(header, targets)
    elif not header.is_cmyk:
        flags = cv2.IMREAD_UNCHANGED  # keeps alpha and 16 bits, which are handled below
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"damaged: the {header.format} data cannot be decoded ({error.err})") from error
    if image is None:
        raise ImageError(f"damaged or truncated: the {header.format} data cannot be decoded")
    if flags == cv2.IMREAD_UNCHANGED:
        # libtiff hands out 8-bit colours multiplied by their alpha already
        premultiplied = header.format == "TIFF" and image.dtype == np.uint8
        background = (targets[0] if targets else Preprocessing()).background
        image = _rgb_from_unchanged(image, background, premultiplied=premultiplied)
    pixels = cast(Pixels, image)
    return pixels if header.format == "TIFF" else _upright(pixels, header.orientation)  # OpenCV turns TIFF itself


def _reduced(header: ImageHeader, targets: Sequence[Preprocessing]) -> int:
    if not targets:
        return _JPEG_FLAGS
    height, width = (header.width, header.height) if header.is_transposed else (header.height, header.width)
    sizes = [resized_hw(height, width, target) for target in targets]
    resized_h, resized_w = max(h for h, _ in sizes), max(w for _, w in sizes)
    for factor, reduced_color in _REDUCTIONS:
        if height // factor >= 2 * resized_h and width // factor >= 2 * resized_w:
            return (reduced_color & ~cv2.IMREAD_COLOR_BGR) | _JPEG_FLAGS
    return _JPEG_FLAGS


def _rgb_from_unchanged(image: NDArray[Any], background: tuple[int, int, int], *, premultiplied: bool) -> Pixels:
    if image.dtype == np.uint16:
        image = np.rint(image / 257).astype(np.uint8)  # 65535 / 257 = 255
    if image.dtype != np.uint8:
        raise ImageError(f"{image.dtype} pixels: expected 8 or 16 bits a channel")
    if image.ndim == 2:
        return cast(Pixels, cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))
    if image.shape[2] == 3:
        return cast(Pixels, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    rgba = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA)
    alpha = rgba[:, :, 3:].astype(np.float32) / 255
    rgb = rgba[:, :, :3] * (1 if premultiplied else alpha) + np.array(background, np.float32) * (1 - alpha)
    return np.rint(rgb).clip(0, 255).astype(np.uint8)


def _upright(image: Pixels, orientation: int) -> Pixels:
    """Undo EXIF orientation (tag 274): 2 to 4 flip, 5 to 8 swap the axes as well."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])


def resized_hw(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """The size that a picture is resized to before padding and centre crop, rounded as torchvision's Resize does."""
    covered_h, covered_w = preprocessing.covered_hw
    if preprocessing.resize == "squash":
        return covered_h, covered_w
    is_wider = covered_h * width >= covered_w * height
    if preprocessing.resize == "pad":
        if is_wider:
            return max(1, height * covered_w // width), covered_w
        return covered_h, max(1, width * covered_h // height)
    if is_wider:
        return covered_h, max(covered_w, width * covered_h // height)
    return max(covered_h, height * covered_w // width), covered_w


def resize_and_crop(image: Pixels, preprocessing: Preprocessing, position: tuple[float, float] = (0.5, 0.5)) -> Pixels:
    """Resize and crop a picture to the model's input.

    Args:
        image: (h, w, 3) uint8, RGB.
        position: of the crop in the resized picture, down and across: 0 is the top or left edge, 1 the other one. The
            centre is what every model is measured with; others are views for test-time augmentation.

    Returns:
        (*size_hw, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: a strip so thin that the resize would need more than `MAX_RESIZED_PIXELS`.
    """
    height, width = image.shape[:2]
    new_h, new_w = resized_hw(height, width, preprocessing)
    if new_h * new_w > MAX_RESIZED_PIXELS:
        raise ImageError(f"too thin: {width} x {height} pixels would be resized to {new_w} x {new_h}")
    if (new_h, new_w) != (height, width):
        interpolation = _interpolation(height / new_h, width / new_w, preprocessing)
        image = cast(Pixels, cv2.resize(image, (new_w, new_h), interpolation=interpolation))
    if preprocessing.resize == "pad":
        image = _padded(image, preprocessing)
        new_h, new_w = image.shape[:2]
    crop_h, crop_w = preprocessing.size_hw
    top, left = round((new_h - crop_h) * position[0]), round((new_w - crop_w) * position[1])
    return np.ascontiguousarray(image[top : top + crop_h, left : left + crop_w])


def _padded(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """The picture in the middle of one that covers the crop, filled with the background."""
    covered_h, covered_w = preprocessing.covered_hw
    more_h, more_w = covered_h - image.shape[0], covered_w - image.shape[1]
    top, left = more_h // 2, more_w // 2
    border, colour = cv2.BORDER_CONSTANT, preprocessing.background
    return cast(Pixels, cv2.copyMakeBorder(image, top, more_h - top, left, more_w - left, border, value=colour))


def _interpolation(shrink_h: float, shrink_w: float, preprocessing: Preprocessing) -> int:
    # INTER_LINEAR looks at 2 x 2 source pixels whatever the shrink, so from two-fold on it skips pixels:
    # there only the box filter (INTER_AREA) is free of aliasing. It costs five times as much below that.
    if max(shrink_h, shrink_w) >= 2:
        return cv2.INTER_AREA
    return _INTERPOLATIONS[preprocessing.interpolation]


def load(path: Path, preprocessing: Preprocessing) -> Pixels:
    """One file as the model's input: `read`, `decode`, `resize_and_crop`.

    Returns:
        (*size_hw, 3) uint8, RGB.

    Raises:
        ImageError: with the path and the reason.
    """
    data = read(path)
    try:
        return resize_and_crop(decode(data, preprocessing), preprocessing)
    except ImageError as error:
        raise ImageError(error.reason, str(path)) from error
