"""What the first bytes of an image file say: format, size, orientation, and whether the file is whole.

Reading the header before decoding is what lets a 30,000 x 30,000 bomb be refused without holding its pixels,
a large JPEG be decoded at reduced scale, and "truncated" be told apart from "not an image".

Sources: JPEG ITU-T T.81 annex B; PNG third edition (W3C); WebP RFC 9649; TIFF 6.0; EXIF 2.32 (tag 274).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from edgecls.errors import ImageError

Format = Literal["JPEG", "PNG", "WebP", "BMP", "TIFF"]
READABLE = "JPEG, PNG, WebP, BMP or TIFF"

_FOREIGN = {
    b"GIF8": "a GIF",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"<svg": "an SVG drawing",
    b"8BPS": "a Photoshop file",
    b"\x00\x00\x00\x0cJXL": "a JPEG XL file",
    b"\x00\x00\x00\x0cjP": "a JPEG 2000 file",
}
_TIFF_CMYK = 5  # PhotometricInterpretation of separated inks
_TIFF_TAG_WIDTH, _TIFF_TAG_HEIGHT, _TIFF_TAG_PHOTOMETRIC, _TIFF_TAG_ORIENTATION = 256, 257, 262, 274


@dataclass(frozen=True)
class ImageHeader:
    """Stored (not yet oriented) size in pixels; `orientation` is EXIF's 1 to 8."""

    format: Format
    height: int
    width: int
    orientation: int = 1
    is_cmyk: bool = False

    @property
    def is_transposed(self) -> bool:
        """Whether applying the orientation swaps height and width."""
        return self.orientation >= 5


def read_header(data: bytes) -> ImageHeader:
    """Parse the header of a whole file held in memory.

    Raises:
        ImageError: empty, truncated, or not one of the formats that are read.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith(b"BM"):
            return _bmp(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _tiff(data)
    except (struct.error, IndexError) as error:
        raise ImageError(f"truncated: the file ends inside its header, after {len(data)} bytes") from error
    raise ImageError(f"not an image: {_guess(data)}; expected {READABLE}")


def _guess(data: bytes) -> str:
    for magic, name in _FOREIGN.items():
        if data.startswith(magic):
            return f"it is {name}"
    if data[4:8] == b"ftyp":
        return "it is a HEIC, AVIF or MP4 file"
    return f"it starts with {data[:8]!r}"


def _jpeg(data: bytes) -> ImageHeader:
    position, orientation, size = 2, 1, None
    while True:
        while data[position] == 0xFF and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        marker, (length,) = data[position + 1], struct.unpack_from(">H", data, position + 2)
        if data[position] != 0xFF or length < 2:
            raise ImageError("damaged: the JPEG header is not a chain of segments")
        body = position + 4
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # SOFn, not DHT, JPG, DAC
            size = struct.unpack_from(">xHH", data, body)
        elif marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[body + 6 : position + 2 + length])
        elif marker == 0xDA:  # start of scan: the header ends here
            break
        position += 2 + length
    if size is None:
        raise ImageError("damaged: a JPEG without a frame header")
    # compressed data never holds the end marker: 0xFF is stuffed. From the end: it is the last thing in most files
    if data.rfind(b"\xff\xd9", position) < 0:
        raise ImageError(f"truncated: the JPEG data has no end, after {len(data)} bytes")
    return _checked("JPEG", size[0], size[1], orientation)


def _png(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from(">II", data, 16)
    orientation, position = 1, 8
    while True:
        if position + 12 > len(data):
            raise ImageError(f"truncated: the PNG ends before its last chunk, after {len(data)} bytes")
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
        if kind == b"IEND":
            return _checked("PNG", height, width, orientation)


def _webp(data: bytes) -> ImageHeader:
    (riff_size,) = struct.unpack_from("<I", data, 4)
    if len(data) < riff_size + 8:
        raise ImageError(f"truncated: the WebP has {len(data)} of {riff_size + 8} bytes")
    kind = data[12:16]
    orientation = 1
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        position = 12
        while position + 8 <= riff_size + 8:
            chunk, length = struct.unpack_from("<4sI", data, position)
            if chunk == b"EXIF":
                exif = data[position + 8 : position + 8 + length]
                orientation = _exif_orientation(exif[6:] if exif.startswith(b"Exif\0\0") else exif)
            position += 8 + length + length % 2
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ImageError(f"damaged: unknown WebP chunk {kind!r}")
    return _checked("WebP", height, width, orientation)


def _bmp(data: bytes) -> ImageHeader:
    (header_size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return _checked("BMP", abs(height), abs(width), 1)  # a negative height means rows from the top


def _tiff(data: bytes) -> ImageHeader:
    tags = _tiff_tags(data)
    return _checked(
        "TIFF",
        tags.get(_TIFF_TAG_HEIGHT, 0),
        tags.get(_TIFF_TAG_WIDTH, 0),
        tags.get(_TIFF_TAG_ORIENTATION, 1),
        is_cmyk=tags.get(_TIFF_TAG_PHOTOMETRIC) == _TIFF_CMYK,
    )


def _tiff_tags(data: bytes) -> dict[int, int]:
    """Single SHORT and LONG values of the first directory, by tag; EXIF is laid out the same way."""
    order = "<" if data[:2] == b"II" else ">"
    (offset,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, offset)
    tags = {}
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, entry)
        if length == 1 and kind in (3, 4):
            (tags[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
    return tags


def _exif_orientation(exif: bytes) -> int:
    """1 where the block is damaged: pictures with broken EXIF are common and their pixels are fine."""
    try:
        return _tiff_tags(exif).get(_TIFF_TAG_ORIENTATION, 1)
    except (struct.error, IndexError):
        return 1


def _checked(format: Format, height: int, width: int, orientation: int, *, is_cmyk: bool = False) -> ImageHeader:
    if height < 1 or width < 1:
        raise ImageError(f"damaged: the {format} header says {width} x {height} pixels")
    return ImageHeader(format, height, width, orientation if 1 <= orientation <= 8 else 1, is_cmyk)
