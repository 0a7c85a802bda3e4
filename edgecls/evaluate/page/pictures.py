"""Pictures for a page: small WebP images inside the HTML, so that one file is all there is."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edgecls import images
from edgecls.errors import ImageError
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing

SIDE: Final = 160  # pixels of the longer side
_QUALITY: Final = 70
_SHARE_OF_HEAT: Final = 0.45


def thumbnail(path: Path, side: int = SIDE, heat: NDArray[np.float32] | None = None) -> str:
    """A small copy of a picture as a `data:` address; empty where it cannot be read.

    Args:
        side: of the longer side, in pixels.
        heat: (g, g), drawn over it: red where the answer depends on that place.
    """
    target = Preprocessing((side, side), resize="pad", crop_fraction=1.0)
    try:
        picture = images.decode(images.read(path), target)
    except (ImageError, MemoryError):
        return ""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    return webp(_heated(cast(Pixels, small), heat) if heat is not None else cast(Pixels, small))


def webp(picture: Pixels, quality: int = _QUALITY) -> str:
    """(h, w, 3) uint8 RGB as a `data:` address; a quality above 100 loses nothing."""
    data = cv2.imencode(".webp", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


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
