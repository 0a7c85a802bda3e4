"""Damaged pictures and videos: no crash, no hang, no memory, and no answer where Pillow sees damage.

Seeds are fixed, so that a failure repeats. EDGECLS_FUZZ_SECONDS makes it longer: 1,200 ran by hand.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import time
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pytest
from PIL import Image

from edgecls import images
from edgecls.errors import ImageError
from edgecls.runtime.input import video
from edgecls.runtime.pipeline import Frame
from edgecls.runtime.stages import peak_memory_mb

SECONDS: Final = float(os.environ.get("EDGECLS_FUZZ_SECONDS", "30"))
# Seconds of CPU a file, so that a busy machine changes nothing. A WebP whose damaged header asks for as many pixels as
# are allowed takes one; the others are for slower machines.
SLOWEST: Final = 5.0
MOST_MEMORY_MB: Final = 1_000
REFUSED_SHARE: Final = 0.01


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def seeds() -> list[bytes]:
    """A whole file of every kind that has a decoder of its own."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    pixels = cv2.GaussianBlur(noise, (9, 9), 3)
    colour = Image.fromarray(pixels)
    clear = colour.convert("RGBA")
    clear.putalpha(Image.fromarray(noise[:, :, 0]))
    exif = Image.Exif()
    exif[274] = 6
    sixteen = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    tiff = [encoded(colour, "TIFF", compression=kind) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")]
    return [
        encoded(colour, "JPEG", exif=exif),
        encoded(colour, "JPEG", progressive=True),
        encoded(colour, "JPEG", restart_marker_rows=1),
        encoded(colour.convert("L"), "JPEG"),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour, "PNG"),
        encoded(clear, "PNG"),
        encoded(colour.convert("P"), "PNG"),
        encoded(sixteen, "PNG"),
        encoded(colour, "WEBP"),
        encoded(clear, "WEBP", lossless=True),
        encoded(colour, "BMP"),
        encoded(colour.convert("L"), "BMP"),
        encoded(clear, "BMP"),
        encoded(sixteen, "TIFF"),
        *tiff,
        encoded(colour, "GIF"),
        encoded(colour, "AVIF"),
    ]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The file with one to four accidents: bytes changed, put in, left out or zeroed, the end cut off."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(len(changed))
        match chance.randrange(7):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                changed[at:at] = chance.randbytes(chance.choice([1, 2, 7, 40]))
            case 3:
                del changed[at : at + chance.choice([1, 2, 16, 300])]
            case 4:
                del changed[max(20, at) :]
            case 5:
                changed[at : at + 4] = bytes(4)
            case _:
                changed[at % min(len(changed), 200)] = chance.choice([0, 127, 128, 255])
        if len(changed) < 20:
            break
    return bytes(changed)


def pillow_reads(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
    except Exception:  # whatever its parsers meet
        return False
    return True


@pytest.mark.filterwarnings("ignore")  # Pillow's about damaged metadata
def test_damaged_pictures_are_errors_or_pictures_that_pillow_reads_too() -> None:
    end = time.perf_counter() + SECONDS * 0.8
    chance = random.Random(14)
    n_read = n_refused = n_errors = 0
    for data in (damaged(whole, chance) for whole in itertools.cycle(seeds())):
        started, memory = time.process_time(), peak_memory_mb()
        try:
            pixels = images.decode(data)
        except ImageError:
            pixels = None
        assert time.process_time() - started < SLOWEST
        assert peak_memory_mb() - memory < MOST_MEMORY_MB  # of one file: what the process holds besides may grow
        if pixels is None:
            n_errors += 1
        else:
            assert pixels.dtype == np.uint8
            assert (pixels.ndim, pixels.shape[2]) == (3, 3)
            n_read += 1
            n_refused += not pillow_reads(data)
        if time.perf_counter() > end:
            break
    assert min(n_read, n_errors) > 50
    assert n_refused <= REFUSED_SHARE * n_read, (n_refused, n_read)


def test_damaged_videos_end(tmp_path: Path) -> None:
    end = time.perf_counter() + SECONDS * 0.2
    wholes = []
    for suffix, codec in ((".avi", "MJPG"), (".mp4", "mp4v")):
        path = tmp_path / f"whole{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 10, (64, 48))
        for number in range(12):
            writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
        writer.release()
        wholes.append((suffix, path.read_bytes()))
    chance, n_files = random.Random(14), 0
    for suffix, whole in itertools.cycle(wholes):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(damaged(whole, chance))
        started = time.process_time()
        *shown, last = video.frames(str(path), most=100)
        assert time.process_time() - started < SLOWEST
        assert all(isinstance(each, Frame) for each in shown)
        assert last.name
        n_files += 1
        if time.perf_counter() > end:
            break
    assert n_files > 20
