"""Files to pixels: find, decode, orient, resize, crop. The only preprocessing there is.

Training's validation, calibration, the golden answers and prediction all come through here, so a model
sees on the device what it saw while it was measured. Training adds its augmentation afterwards.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgecls.decoding.header import ImageHeader, read_header
from edgecls.decoding.pillow import Opened
from edgecls.errors import ImageError
from edgecls.manifest import Preprocessing

Pixels = NDArray[np.uint8]

# with those that browsers and phones write (.jfif, .heic), even where a word about them is all that can be given
SUFFIXES: Final = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jif",
        ".pjpeg",
        ".pjp",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
    }
    | {".tiff", ".gif", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm"}
)

MAX_BYTES: Final = 768 << 20  # for decoding one picture: a JPEG of 268 million pixels
MAX_FILE_BYTES: Final = 512 << 20
# A pipe that nobody writes to must not hold the process for ever; O_BINARY is Windows'.
_TO_READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_LARGE_BYTES: Final = 128 << 20  # pictures that need more are decoded one at a time
_LARGE_TURN: Final = threading.Lock()
_AT_ONCE: Final = nullcontext()
_BAND_PIXELS: Final = 1 << 18
MAX_RESIZED_PIXELS: Final = 1 << 24  # a 1 x 10,000 strip would be 256 x 2,560,000 after the resize

# JPEG can be decoded at 1/2, 1/4 or 1/8 for less work, by leaving out high DCT frequencies. It is used where what is
# left is still twice as large as the resize asks for, so that most of the shrink is the same box filter as after full
# decoding: 99.7 % of top-1 answers agree. Down to once as large, 93.7 % did; see docs/preprocessing.md.
_REDUCTIONS: Final = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
_JPEG_FLAGS: Final = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_FLAGS: Final = {"PNG": cv2.IMREAD_UNCHANGED, "BMP": _JPEG_FLAGS}  # unchanged keeps alpha and 16 bits

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


@dataclass(frozen=True)
class Listing:
    """One folder as it was walked.

    Attributes:
        names: of its visible files, sorted.
        reason: why it cannot be walked; empty where it was.
    """

    folder: str
    names: list[str]
    reason: str = ""


def find_images(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder in natural order: a folder's own files, then its sub-folders.

    Files are told by suffix (`SUFFIXES`, any case); names that start with a dot are skipped. A *folder*
    that is named like an image is yielded too, and not walked: it must show up as an error, not vanish.
    Symbolic links are followed; a folder met a second time (a link to above) is not walked again.
    """
    return (Path(each.folder, name) for each in walk(folder) for name in each.names if has_image_suffix(name))


def find_closed(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders from `folder` down that cannot be walked, with the reason."""
    return ((Path(each.folder), each.reason) for each in walk(folder) if each.reason)


def walk(folder: Path) -> Iterator[Listing]:
    """Yield each folder from `folder` down in the order of `find_images`; one that cannot be walked with its reason."""
    walked: set[tuple[int, int]] = set()
    waiting = [str(folder)]  # a stack: folders may lie deeper than Python calls may
    while waiting:
        current = waiting.pop()
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in walked:
                continue
            walked.add((status.st_dev, status.st_ino))
            files, folders = _entries(current)
        except OSError as error:
            yield Listing(current, [], f"this folder cannot be walked: {error.strerror or error}")
            continue
        yield Listing(current, sorted(files, key=natural_key))
        waiting += [os.path.join(current, name) for name in sorted(folders, key=natural_key, reverse=True)]


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """The names of a folder's visible files and sub-folders; what cannot be told counts as a sub-folder."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:  # names are kept, entries are not: they hold the whole path each
        for entry in entries:
            if not entry.name.startswith("."):
                is_walked = not has_image_suffix(entry.name) and _may_be_folder(entry)
                (folders if is_walked else files).append(entry.name)
    return files, folders


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or a place that may not be looked at; walking it says why
        return True


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def read(path: str | Path) -> bytes:
    """The bytes of one regular file.

    Raises:
        ImageError: missing, not permitted, larger than `MAX_FILE_BYTES`, or a folder, a pipe or a device.
    """
    try:
        # the system's calls themselves: a file object takes as long again as they do, which small pictures feel
        descriptor = os.open(os.fspath(path), _TO_READ)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"it is {_kind(status.st_mode)}, not a file", str(path))
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError(
                    f"too large: a file of {status.st_size >> 20:,} MB, at most {MAX_FILE_BYTES >> 20} are read",
                    str(path),
                )
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(descriptor)
    except ValueError as error:  # a NUL, which no file name has
        raise ImageError(f"cannot be read: {error}", str(path)) from error
    except MemoryError as error:
        raise ImageError("reading it needs more memory than this process can get", str(path)) from error
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}", str(path)) from error


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return "a pipe or socket"
    return "a device"


class Decoded(NamedTuple):
    """A picture, (h, w, 3) uint8 upright RGB, and height and width as its file has them: before its orientation is
    applied, and at full scale."""

    pixels: Pixels
    stored_hw: tuple[int, int]


def decode(data: bytes, target: Preprocessing | None = None) -> Pixels:
    """The pixels of `decode_file`: (h, w, 3) uint8, RGB.

    Raises:
        ImageError: as there.
    """
    return decode_file(data, target).pixels


def decode_each(data: bytes, targets: Sequence[Preprocessing]) -> list[Decoded]:
    """A whole file for each target as `decode_file` gives it for this one alone, so that a model sees the same pixels
    whatever stands beside it; decoded once for all that take it at one scale and on one background.

    Raises:
        ImageError: as there.
    """
    if len(targets) == 1:
        return [decode_file(data, targets[0])]
    header = read_header(data)
    is_jpeg = header is not None and header.format == "JPEG"
    keys = [(_reduced(header, each)[0] if header and is_jpeg else 1, each.background) for each in targets]
    decoded = {key: decode_file(data, targets[keys.index(key)]) for key in dict.fromkeys(keys)}
    return [decoded[key] for key in keys]


def decode_file(data: bytes, target: Preprocessing | None = None) -> Decoded:
    """Decode a whole file to upright RGB.

    EXIF orientation is applied; grey and palette become RGB; 16 bits are scaled to 8; CMYK and LAB are converted;
    transparency is composited on the preprocessing's background (white where there is none).

    Args:
        data: the bytes of a file of one of the formats in `pillow_decoder.READABLE` (the first frame or page of it).
        target: where given, a JPEG may be decoded at reduced scale, twice what it asks for or more.

    Raises:
        ImageError: empty, truncated, damaged, not an image, or decoding needs more than `MAX_BYTES`.
    """
    header = read_header(data)
    try:
        if header is None or not header.is_plain:
            stored, orientation = _by_pillow(data)
            hw = stored.shape[:2]
        else:
            stored, orientation = _by_opencv(data, header, target), header.orientation
            hw = header.height, header.width
        background = (target or Preprocessing()).background
        return Decoded(_upright(_rgb(stored, background), orientation), hw)
    except MemoryError as error:
        raise ImageError("decoding it needs more memory than this process can get") from error


def stored_hw(data: bytes) -> tuple[int, int]:
    """Height and width of a whole file's picture before its orientation is applied, without decoding it.

    Raises:
        ImageError: empty, damaged, or not an image.
    """
    header = read_header(data) or Opened(data)
    return header.height, header.width


def _by_pillow(data: bytes) -> tuple[NDArray[Any], int]:
    opened = Opened(data)
    with _memory_for(opened.bytes_needed, opened.width, opened.height):
        return opened.decode()


def _by_opencv(data: bytes, header: ImageHeader, target: Preprocessing | None) -> NDArray[Any]:
    """Pixels as RGB, RGBA or grey, 8 or 16 bits."""
    factor, flags = _reduced(header, target) if header.format == "JPEG" else (1, _FLAGS[header.format])
    # the coefficients of a progressive JPEG are all there at once, whatever the scale
    whole, scaled = header.bytes_a_pixel - 3, 3 / factor**2
    needed = round(header.height * header.width * (whole + scaled * (2 if header.orientation > 1 else 1)))
    with _memory_for(needed, header.width, header.height):
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            if error.code == cv2.Error.STS_NO_MEM:
                raise MemoryError from error
            raise ImageError(f"damaged: the {header.format} data cannot be decoded ({error.err})") from error
        if image is None:
            raise ImageError(f"damaged or truncated: the {header.format} data cannot be decoded")
        if flags != cv2.IMREAD_UNCHANGED:
            return cast(Pixels, image)
        if header.transparent_grey and image.ndim == 2:
            return _with_alpha(image, *header.transparent_grey)
        if image.ndim == 2:
            return image
        return cast(Pixels, cv2.cvtColor(image, cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA))


def _memory_for(needed: int, width: int, height: int) -> AbstractContextManager[object]:
    """Refuse what needs too much; decode inside, where large pictures take turns so that workers do not need it all at
    once."""
    if needed > MAX_BYTES:
        most = MAX_BYTES >> 20
        raise ImageError(
            f"too large: decoding {width} x {height} pixels needs {needed >> 20:,} MB, expected {most} at most"
        )
    return _LARGE_TURN if needed > _LARGE_BYTES else _AT_ONCE


def _with_alpha(grey: NDArray[Any], transparent: int, depth: int) -> NDArray[Any]:
    """A grey PNG with one transparent value: OpenCV hands out its greys, scaled from fewer bits to eight."""
    value = transparent * 255 // ((1 << depth) - 1) if depth < 8 else transparent
    most = np.iinfo(grey.dtype).max
    return np.dstack([grey, grey, grey, np.where(grey == value, 0, most).astype(grey.dtype)])


def _reduced(header: ImageHeader, target: Preprocessing | None) -> tuple[int, int]:
    """By which factor a JPEG is decoded smaller, and the flags for that."""
    if target is None:
        return 1, _JPEG_FLAGS
    height, width = (header.width, header.height) if header.is_transposed else (header.height, header.width)
    resized_h, resized_w = resized_hw(height, width, target)
    for factor, reduced_color in _REDUCTIONS:
        if height // factor >= 2 * resized_h and width // factor >= 2 * resized_w:
            return factor, (reduced_color & ~cv2.IMREAD_COLOR_BGR) | _JPEG_FLAGS
    return 1, _JPEG_FLAGS


def _rgb(image: NDArray[Any], background: tuple[int, int, int]) -> Pixels:
    """Grey, RGB or RGBA of 8 or 16 bits as RGB of 8."""
    if image.dtype == np.uint16:
        image = _in_bands(image, lambda band: np.rint(band / 257))  # 65535 / 257 = 255
    if image.dtype != np.uint8:
        raise ImageError(f"{image.dtype} pixels: expected 8 or 16 bits a channel")
    if image.ndim == 2:
        return cast(Pixels, cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))
    if image.shape[2] == 3:
        return image

    def composited(band: NDArray[Any]) -> NDArray[Any]:
        alpha = band[:, :, 3:].astype(np.float32) / 255
        rgb: NDArray[Any] = np.rint(band[:, :, :3] * alpha + np.array(background, np.float32) * (1 - alpha))
        return rgb

    return _in_bands(image, composited)


def _in_bands(image: NDArray[Any], change: Callable[[NDArray[Any]], NDArray[Any]]) -> Pixels:
    """Change a picture some rows at a time, so that what lies between is never as large as a large picture."""
    rows = max(1, _BAND_PIXELS // image.shape[1])
    changed = [change(image[top : top + rows]).astype(np.uint8) for top in range(0, len(image), rows)]
    return changed[0] if len(changed) == 1 else np.concatenate(changed)


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
        try:
            image = cast(Pixels, cv2.resize(image, (new_w, new_h), interpolation=interpolation))
        except cv2.error as error:
            raise ImageError(
                f"{width} x {height} pixels cannot be resized to {new_w} x {new_h}: {error.err}"
            ) from error
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
