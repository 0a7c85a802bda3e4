"""What the first bytes of an image file say: format, size, orientation, and whether OpenCV can be trusted with it.

This protects and never judges: it finds what decoding will cost before a pixel is decoded, and it tells the everyday
files, which OpenCV decodes fastest, from those that OpenCV gets wrong without a word. Those go to Pillow, which also
says whether a file is damaged.

Sources: JPEG ITU-T T.81 annex B; PNG third edition (W3C); BMP "BITMAPINFOHEADER" (Microsoft); EXIF 2.32 (tag 274).
"""

from __future__ import annotations

import re
import struct
from typing import Final, Literal, NamedTuple

from edgecls.errors import ImageError

Format = Literal["JPEG", "PNG", "BMP"]

# How libjpeg finds a marker: other bytes are skipped. Without a repetition in it, the search for the first byte is C's.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_IN_SCAN: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # but for stuffed bytes and restarts
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; not DHT, JPG, DAC
_PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ARITHMETIC: Final = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_BARE: Final = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, restarts and a second start: markers without a length
_AFTER_SCAN: Final = frozenset({0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE})
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_MOST_JUNK: Final = 1 << 16  # bytes between segments; Pillow goes through them one by one
_MOST_CHUNKS: Final = 100_000  # libpng writes 8 kB in each: 800 MB
_ORIENTATION: Final = 274
_FRAME: Final = struct.Struct(">xHHB")


class ImageHeader(NamedTuple):
    """What the first bytes of an image file say about it.

    Attributes:
        height, width: in pixels as stored, not yet oriented.
        orientation: EXIF's 1 to 8.
        bytes_a_pixel: that decoding needs at full size.
        is_plain: whether OpenCV decodes it right, or fails; else Pillow must.
        transparent_grey: of a grey PNG the value that is transparent, at the file's bit depth, with that depth.
    """

    format: Format
    height: int
    width: int
    orientation: int = 1
    bytes_a_pixel: int = 3
    is_plain: bool = True
    transparent_grey: tuple[int, int] | None = None

    @property
    def is_transposed(self) -> bool:
        """Whether applying the orientation swaps height and width."""
        return self.orientation >= 5


def read_header(data: bytes) -> ImageHeader | None:
    """The header of a whole JPEG, PNG or BMP file held in memory; None where it is something else or hard to read.

    Raises:
        ImageError: a JPEG that ends inside its header, or whose data cannot be what its header says.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"BM"):
            return _bmp(data)
    except (struct.error, IndexError):
        return None
    return None


class _Frame(NamedTuple):
    """The frame header of a JPEG: `blocks` is how many 8 x 8 blocks of coefficients it has."""

    height: int
    width: int
    blocks: int
    marker: int
    n_components: int


def _jpeg(data: bytes) -> ImageHeader:
    position, junk, orientation = 2, 0, 1
    frame: _Frame | None = None
    while True:
        body = position + 2
        # a marker nearly always stands where the last segment ends; searching for it costs a small picture a twentieth
        if body > len(data) or data[position] != 0xFF or not 0 < data[position + 1] < 0xFF:
            found = _NEXT_MARKER.search(data, position)
            if not found:
                raise ImageError(f"truncated: the file ends inside its header, after {len(data):,} bytes")
            body = found.end()
            junk += len(data[position : found.start()].rstrip(b"\xff"))  # 0xFF may fill up
        marker = data[body - 1]
        if marker == _EOI:
            raise ImageError("damaged: a JPEG that ends before its picture begins")
        if marker in _BARE:
            position = body
            continue
        if body + 2 > len(data):
            raise ImageError(f"truncated: the file ends inside its header, after {len(data):,} bytes")
        position = body + max(data[body] << 8 | data[body + 1], 2)
        if marker in _SOF:
            frame = _jpeg_frame(data, body, marker)
        elif marker == _APP1 and data[body + 2 : body + 8] == b"Exif\0\0":
            orientation = exif_orientation(data[body + 8 : position])
        elif marker == _SOS:
            break
    if frame is None:
        raise ImageError("damaged: a JPEG without a frame header")
    # Each block has a code of one bit at the least (T.81, F.1.2), though not those that only fill up the edges: so half
    # of them. Arithmetic coding has no such bound.
    if frame.marker not in _ARITHMETIC and (len(data) - position) * 8 < frame.blocks // 2:
        raise ImageError(
            f"damaged: {len(data):,} bytes cannot hold the {frame.width} x {frame.height} pixels of its header"
        )
    if junk > _MOST_JUNK:
        raise ImageError(f"damaged: {junk:,} bytes in its header belong to no segment")
    coefficients = 128 * frame.blocks if frame.marker in _PROGRESSIVE else 0  # those of all scans, of 16 bits
    return _checked(
        ImageHeader(
            "JPEG", frame.height, frame.width, orientation,
            bytes_a_pixel=3 + round(coefficients / max(frame.height * frame.width, 1)),
            is_plain=frame.n_components in (1, 3) and _ends_in_order(data, position),
        )
    )  # fmt: skip


def _jpeg_frame(data: bytes, body: int, marker: int) -> _Frame:
    height, width, n_components = _FRAME.unpack_from(data, body + 2)
    across, down, blocks = 1, 1, 0
    for factors in data[body + 9 : body + 9 + 3 * n_components : 3]:  # across in the upper four bits, down in the lower
        across, down = max(across, factors >> 4), max(down, factors & 15)
        blocks += (factors >> 4) * (factors & 15)
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    return _Frame(height, width, units * blocks, marker, n_components)


def _ends_in_order(data: bytes, position: int) -> bool:
    """Whether what follows the first scan's header is scans and segments up to an end, and nothing else."""
    while True:
        found = _IN_SCAN.search(data, position)
        if not found:
            return False
        marker, position = data[found.end() - 1], found.end()
        if marker == _EOI:
            return True
        if marker not in _AFTER_SCAN or position + 2 > len(data):
            return False
        position += int.from_bytes(data[position : position + 2], "big")


def _png(data: bytes) -> ImageHeader | None:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    orientation, position, transparent = 1, 8, None
    for _ in range(_MOST_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if kind == b"eXIf":
            orientation = exif_orientation(data[body : body + length])
        elif kind == b"tRNS" and colour == 0:
            transparent = (struct.unpack_from(">H", data, body)[0], depth)
        position = body + length + 4
        if position > len(data):
            return None
        if kind == b"IEND":
            channels = {0: 1, 2: 3, 3: 4, 4: 4, 6: 4}.get(colour, 4)
            needed = channels * (2 if depth == 16 else 1) + 3
            return _checked(ImageHeader("PNG", height, width, orientation, needed, transparent_grey=transparent))
    raise ImageError(f"damaged: a PNG of more than {_MOST_CHUNKS:,} chunks")


def _bmp(data: bytes) -> ImageHeader | None:
    """Only what every program writes: 8 or 24 bits without compression. Other kinds have traps (masks, alpha)."""
    (offset, header_size) = struct.unpack_from("<II", data, 10)
    if header_size < 40:
        return None
    width, height, _planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    rows = abs(height)  # negative where rows go from the top
    is_whole = offset + rows * ((width * bits + 31) // 32 * 4) <= len(data)
    if bits not in (8, 24) or compression or not is_whole:
        return None
    return _checked(ImageHeader("BMP", rows, width, bytes_a_pixel=6))


def exif_orientation(exif: bytes) -> int:
    """Tag 274 of an EXIF block: 1 to 8.

    1 where the block is damaged: pictures with broken EXIF are common and their pixels are fine.
    """
    try:
        order = "<" if exif[:2] == b"II" else ">"
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, offset)
        for entry in range(offset + 2, offset + 2 + 12 * count, 12):
            tag, kind, length = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION and length == 1 and kind in (3, 4):
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _checked(header: ImageHeader) -> ImageHeader:
    if header.height < 1 or header.width < 1:
        raise ImageError(f"damaged: the {header.format} header says {header.width} x {header.height} pixels")
    return header
