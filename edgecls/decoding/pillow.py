"""The files that OpenCV does not decode, or decodes wrongly without a word: by Pillow, to upright RGB.

Pillow also is the judge of damage: it refuses a TIFF, a WebP or a JPEG whose data break off, of which OpenCV hands out
a picture whose rest is black or grey. It takes up to twice the time, so the everyday JPEG and PNG do not come here.
"""

from __future__ import annotations

import io
import warnings
from importlib import import_module
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecls.decoding.header import exif_orientation
from edgecls.errors import ImageError

_FORMATS: Final[tuple[str, ...]] = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "PPM")
_FOREIGN: Final = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"<svg": "an SVG drawing",
    b"8BPS": "a Photoshop file",
    b"\x00\x00\x00\x0cJXL": "a JPEG XL file",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000 file",
}
_KNOWN: Final = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8")
_HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
READABLE: Final = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or PPM"

# Registered here and now: Pillow would do so at the first file, for which several threads may ask at once.
for _plugin in ("Avif", "Bmp", "Gif", "Jpeg", "Mpo", "Png", "Ppm", "Tiff", "WebP"):
    import_module(f"PIL.{_plugin}ImagePlugin")

# Its limit counts pixels; ours counts bytes, before anything is loaded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Opened:
    """A picture whose header has been read and whose pixels have not.

    Attributes:
        height, width: in pixels as stored.
        bytes_needed: while it is decoded.
    """

    def __init__(self, data: bytes) -> None:
        """Read the header.

        Raises:
            ImageError: empty, or nothing that is read.
        """
        if not data:
            raise ImageError("the file is empty")
        self._picture = _open(data)
        self.width, self.height = self._picture.size
        # Pillow keeps colours in four bytes, the array of them takes three, and of any other kind four and four more
        is_simple = self._picture.mode in ("L", "RGB") and not self._picture.has_transparency_data
        self.bytes_needed = self.width * self.height * (7 if is_simple else 12)

    def decode(self) -> tuple[NDArray[Any], int]:
        """Decode the first frame or page.

        Returns:
            (h, w) uint8 or uint16 grey, (h, w, 3) uint8 RGB, or (h, w, 4) uint8 RGBA; and its EXIF orientation.

        Raises:
            ImageError: truncated, damaged, or pixels that are no colours.
            MemoryError: it needs more than there is.
        """
        picture = self._picture
        with picture:
            try:
                picture.load()
                pixels = _pixels(picture)
            except (MemoryError, ImageError):
                raise
            except Exception as error:  # of damaged data it raises whatever its parsers meet
                raise ImageError(_damage(picture.format, error)) from error
            # Pillow turns a TIFF itself while it loads
            return pixels, 1 if picture.format == "TIFF" else _orientation(picture)


def _open(data: bytes) -> Image.Image:
    formats = _FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[:64]:
        _register_heif()
        formats = ("HEIF",)
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        if data.startswith(_KNOWN) or data[4:12] in (b"ftypavif", b"ftypavis"):
            raise ImageError(f"damaged or truncated: its header cannot be read, of {len(data):,} bytes") from error
        raise ImageError(f"not an image: {_guess(data)}; expected {READABLE}") from error


def _register_heif() -> None:
    try:
        cast(Any, import_module("pillow_heif")).register_heif_opener()
    except ImportError as error:
        raise ImageError("a HEIC file, as iPhones write them; to read it: pip install 'edgecls[heic]'") from error


def _guess(data: bytes) -> str:
    for magic, name in _FOREIGN.items():
        if data.startswith(magic):
            return f"it is {name}"
    if data[4:8] == b"ftyp":
        return "it is an MP4 video or the like"
    return f"it starts with {data[:8]!r}"


def _pixels(picture: Image.Image) -> NDArray[Any]:
    mode = picture.mode
    if picture.has_transparency_data:
        return np.asarray(picture.convert("RGBA"))
    if mode.startswith("I;16"):
        return np.asarray(picture)
    if mode in ("I", "F"):
        raise ImageError("pixels of 32 bits: expected 8 or 16 bits a channel")
    return np.asarray(picture if mode in ("L", "RGB") else picture.convert("L" if mode == "1" else "RGB"))


def _orientation(picture: Image.Image) -> int:
    exif = picture.info.get("exif", b"")
    return exif_orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1


def _damage(format: str | None, error: Exception) -> str:
    text = str(error) or type(error).__name__
    is_cut = any(word in text.casefold() for word in ("truncated", "end of file", "eof", "more data", "not enough"))
    return f"{'truncated' if is_cut else 'damaged'}: the {format} data cannot be decoded ({text})"
