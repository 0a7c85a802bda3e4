"""Pictures for a page: small WebP images inside the HTML, so that one file is all there is."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgecls import images
from edgecls.errors import ImageError
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing

SIDE: Final = 160  # pixels of the longer side
_QUALITY: Final = 70
_SHARE_OF_HEAT: Final = 0.45


@lru_cache(maxsize=1_024)  # a picture may stand in the gallery and in a cell of the confusion matrix
def thumbnail(path: Path, side: int = SIDE) -> str:
    """A small copy of a picture as a `data:` address; empty where it cannot be read.

    Args:
        side: of the longer side, in pixels.
    """
    small = _small(path, side)
    return "" if small is None else webp(small)


def heated(path: Path, heat: NDArray[np.float32], side: int = SIDE) -> str:
    """The same with red where the answer depends on the place.

    Args:
        heat: (g, g), what the answer loses where each part is covered.
    """
    small = _small(path, side)
    return "" if small is None else webp(_heated(small, heat))


def _small(path: Path, side: int) -> Pixels | None:
    target = Preprocessing((side, side), resize="pad", crop_fraction=1.0)
    try:
        picture = images.decode(images.read(path), target)
    except (ImageError, MemoryError):
        return None
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))  # a browser enlarges what is smaller
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cast(Pixels, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def webp(picture: Pixels, *, is_exact: bool = False) -> str:
    """(h, w, 3) uint8 RGB as a `data:` address.

    Pillow writes it, since it can be told to hurry: a page has hundreds of pictures, and that is six times as fast.
    """
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "WEBP", quality=_QUALITY, method=0, lossless=is_exact)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def _heated(picture: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """The picture in grey where nothing depends on it, and reddish where the answer does."""
    height, width = picture.shape[:2]
    share = np.clip(heat / max(float(heat.max()), 1e-6), 0, 1)
    smooth = cv2.resize(share, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)[..., None]
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    red = np.array([220, 30, 20], np.float32)
    mixed = grey * (1 - _SHARE_OF_HEAT * smooth) + red * _SHARE_OF_HEAT * smooth
    heated: Pixels = np.rint(mixed).clip(0, 255).astype(np.uint8)
    return heated
