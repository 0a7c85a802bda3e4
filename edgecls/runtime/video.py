"""Video files, cameras and streams as pictures: one a frame."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cv2

from edgecls.errors import DatasetError
from edgecls.runtime.pipeline import Frame

VIDEO_SUFFIXES: Final = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"})


def is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_live(given: str) -> bool:
    """Whether a source is no file that ends: a camera's index or device, a GStreamer pipeline, or an address."""
    path = Path(given)
    if path.exists():
        return stat.S_ISCHR(path.stat().st_mode)
    return given.isdecimal() or " ! " in given or re.match(r"[a-z]+://", given) is not None


def frames(given: str, *, step: int = 1, most: int | None = None) -> Iterator[Frame]:
    """Yield every `step`-th frame, RGB and upright, named `<given>#<number>` with numbers from 0.

    Args:
        given: a video file, a camera (index or device), a GStreamer pipeline, or an address that OpenCV reads.
        most: frames to yield; None is all there are, of a camera without end.

    Raises:
        DatasetError: it cannot be opened, or not one frame can be read.
    """
    capture = _opened(given)
    number = yielded = 0
    try:
        while most is None or yielded < most:
            if not capture.grab():  # the end, or damage: OpenCV does not tell which
                break
            if number % step == 0:
                ok, image = capture.retrieve()
                if not ok:
                    break
                yield Frame(f"{given}#{number}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                yielded += 1
            number += 1
    finally:
        capture.release()
    if not number:
        raise DatasetError(f"{given}: opened, but no frame of it can be read; is it a video, and its codec known?")


def _opened(given: str) -> Any:
    if given.isdecimal() and not Path(given).exists():
        capture = cv2.VideoCapture(int(given))
    elif " ! " in given:
        capture = cv2.VideoCapture(given, cv2.CAP_GSTREAMER)
    else:
        capture = cv2.VideoCapture(given)
    if not capture.isOpened():
        capture.release()
        why = "GStreamer pipelines need an OpenCV with GStreamer, as JetPack's is" if " ! " in given else ""
        why = why or ("no such camera, or it is in use" if is_live(given) else "no video that OpenCV can read")
        raise DatasetError(f"{given}: cannot be opened: {why}")
    return capture
