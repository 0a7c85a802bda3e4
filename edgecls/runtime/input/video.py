"""Video files, cameras and streams as pictures: one a frame."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import cv2

from edgecls.errors import DatasetError
from edgecls.images import Pixels, has_image_suffix
from edgecls.runtime.pipeline import Frame, Unreadable

VIDEO_SUFFIXES: Final = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"})

# what FFmpeg finds wrong is in the row; it would also write it across the progress bar
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

_MOST_FRAMES: Final = 1e9  # a header that says more is damaged
_MOST_RATE: Final = 1000.0


def is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_live(given: str) -> bool:
    """Whether a source is no file that ends: a camera's index or device, a GStreamer pipeline, or an address."""
    if os.path.exists(given):
        return stat.S_ISCHR(os.stat(given).st_mode) and not has_image_suffix(given)
    return given.isdecimal() or " ! " in given or re.match(r"[a-z]+://", given) is not None


def frames(given: str, *, step: int = 1, most: int | None = None) -> Iterator[Frame | Unreadable]:
    """Yield every `step`-th frame, RGB and upright, named `<given>#<number>` with numbers from 0.

    A file that cannot be opened, or that ends before its header says so, yields one `Unreadable` at that place.

    Args:
        given: a video file, a camera (index or device), a GStreamer pipeline, or an address that OpenCV reads.
        most: frames to yield; None is all there are, of a camera without end.

    Raises:
        DatasetError: a camera, a pipeline or an address that cannot be opened, or gives not one frame.
    """
    live = is_live(given)
    capture = _opened(given)
    if not capture.isOpened():
        capture.release()
        yield _failed(given, f"cannot be opened: {_why_closed(given)}", live)
        return
    expected, announced = (0, 0) if live else _expected_frames(given, capture)
    number = yielded = 0
    try:
        while most is None or yielded < most:
            if not capture.grab():  # the end, or damage: OpenCV does not tell which
                break
            if number % step == 0:
                pixels = _retrieved(capture)
                if pixels is None:
                    break
                yield Frame(f"{given}#{number}", pixels)
                yielded += 1
            number += 1
        else:
            return
    finally:
        capture.release()
    if not number:
        yield _failed(given, "opened, but no frame of it can be read; is it a video, and its codec known?", live)
    elif number < expected:
        yield Unreadable(given, f"cut off or damaged: {number:,} of {announced:,} frames can be read")


def _retrieved(capture: Any) -> Pixels | None:
    """The frame that was grabbed; None where its data are damaged, of which OpenCV may also hand out nothing."""
    try:
        ok, image = capture.retrieve()
        return cast(Pixels, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) if ok and image is not None and image.size else None
    except cv2.error:
        return None


def _opened(given: str) -> Any:
    if given.isdecimal() and not os.path.exists(given):
        return cv2.VideoCapture(int(given))
    if " ! " in given:
        return cv2.VideoCapture(given, cv2.CAP_GSTREAMER)
    return cv2.VideoCapture(given)


def _why_closed(given: str) -> str:
    if " ! " in given:
        return "GStreamer pipelines need an OpenCV with GStreamer, as JetPack's is"
    return "no such camera, or it is in use" if is_live(given) else "no video that OpenCV can read"


def _failed(given: str, reason: str, live: bool) -> Unreadable:
    if live:
        raise DatasetError(f"{given}: {reason}")
    return Unreadable(given, reason)


def _expected_frames(given: str, capture: Any) -> tuple[int, int]:
    """Frames that a whole file has at the least, and those that its header announces; 0 where nobody knows.

    AVI and MP4 keep the number, of which programs that count otherwise miss one or two. Of others OpenCV multiplies
    the duration by the rate, which is a guess where the rate varies: so a twentieth and a second less.
    """
    announced, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    if not 0 < announced < _MOST_FRAMES:
        return 0, 0
    with open(given, "rb") as file:
        start = file.read(12)
    if start[:4] == b"RIFF" or start[4:8] == b"ftyp":
        return int(announced) - 2, int(announced)
    return int(announced * 0.95 - (rate if 0 < rate < _MOST_RATE else 0)), int(announced)
