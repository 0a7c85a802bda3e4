"""What may be predicted: folders, files, patterns, lists, standard input, videos and cameras."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgecls import images
from edgecls.datasets import ClassNames
from edgecls.errors import DatasetError, ImageError, OptionError
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.input import video
from edgecls.runtime.input.sources import Source, find_sources
from edgecls.runtime.options import SourceOptions
from edgecls.runtime.pipeline import Frame, Unreadable
from tests.conftest import draw, write_image, write_linear_model

CLASSES = ClassNames(("checks", "stripes"))


@pytest.fixture
def here(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder above the photos, as the working folder."""
    monkeypatch.chdir(photos.parent)
    return photos.parent


def names(*given: str | Path) -> list[str]:
    sources = find_sources(given, CLASSES)
    found = [source.name for source in sources]
    assert sources.count in (None, len(found))
    return found


def test_a_pattern_that_the_shell_left_alone_is_expanded(here: Path) -> None:
    assert names("photos/checks/1*.png") == [f"photos/checks/{index}.png" for index in (1, 10, 11)]
    assert len(names("photos/**/*.png")) == 24
    with pytest.raises(DatasetError, match=r"photos/\*\.tif: no file matches this pattern"):
        names("photos/*.tif")


def test_a_list_is_a_path_a_line_relative_to_the_list(here: Path) -> None:
    (here / "photos" / "list.txt").write_text("checks/0.png\n\nstripes/3.png\r\ngone.png\n")
    sources = list(find_sources(["photos/list.txt"], CLASSES))
    assert [source.name for source in sources] == ["checks/0.png", "stripes/3.png", "gone.png"]
    assert [source.truth for source in sources] == ["checks", "stripes", None]
    assert sources[0].picture == "photos/checks/0.png"


def test_a_csv_may_know_the_labels(here: Path) -> None:
    (here / "known.csv").write_text("path,label\nphotos/checks/0.png,stripes\nphotos/checks/1.png,0\n")
    assert [source.truth for source in find_sources(["known.csv"], CLASSES)] == ["stripes", "checks"]
    (here / "plain.csv").write_text("id,path\n1,photos/checks/0.png\n2,photos/stripes/1.png\n")
    assert [source.truth for source in find_sources(["plain.csv"], CLASSES)] == ["checks", "stripes"]
    (here / "other.csv").write_text("path,label\nphotos/checks/0.png,zebra\n")
    with pytest.raises(DatasetError, match=r"other\.csv, line 2: the model does not know the label 'zebra'"):
        names("other.csv")
    (here / "wrong.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        DatasetError, match=r"no column path: the first line is .a,b.; expected a CSV in UTF-8 with a column `path`"
    ):
        names("wrong.csv")


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_an_empty_list_is_an_error(here: Path, name: str) -> None:
    (here / name).write_text("path\n" if name.endswith("csv") else "\n")
    with pytest.raises(DatasetError, match=name):
        names(name)


def test_a_list_on_standard_input_is_read_as_it_comes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/checks/0.png\nphotos/stripes/1.png\n"))
    sources = find_sources(["-"], CLASSES)
    assert sources.count is None
    assert list(sources) == [
        Source("photos/checks/0.png", "photos/checks/0.png", "checks"),
        Source("photos/stripes/1.png", "photos/stripes/1.png", "stripes"),
    ]


def test_names_that_end_with_nul_are_a_list_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/checks/0.png\0photos/stripes/1.png\0"))
    assert names("-") == ["photos/checks/0.png", "photos/stripes/1.png"]


def test_several_sources_keep_their_order_and_folders_keep_their_name(here: Path) -> None:
    found = names("photos/stripes/5.png", "photos/checks")
    assert found[:2] == ["photos/stripes/5.png", "photos/checks/0.png"]
    assert len(found) == 13


def test_an_empty_source_is_an_error(here: Path) -> None:
    with pytest.raises(DatasetError, match="an empty source"):
        names("")


COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Five frames, each of one colour (RGB)."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for red, green, blue in COLOURS:
        writer.write(np.full((48, 64, 3), (blue, green, red), np.uint8))
    writer.release()
    return path


def test_a_video_is_a_picture_a_frame(clip: Path) -> None:
    sources = list(find_sources([clip], CLASSES))
    assert [source.name for source in sources] == [f"{clip}#{number}" for number in range(5)]
    for source, colour in zip(sources, COLOURS, strict=True):
        assert isinstance(source.picture, Frame)
        assert source.picture.pixels.shape == (48, 64, 3)
        assert np.abs(source.picture.pixels.astype(int) - colour).max() < 12  # JPEG's loss


def test_frames_can_be_skipped_and_ended(clip: Path) -> None:
    options = SourceOptions(frame_step=2, max_frames=2)
    assert [source.name for source in find_sources([clip], CLASSES, options)] == [f"{clip}#0", f"{clip}#2"]
    with pytest.raises(OptionError, match="--frame-step 0"):
        SourceOptions(frame_step=0)
    with pytest.raises(OptionError, match="--max-frames 0"):
        SourceOptions(max_frames=0)


def test_a_file_that_is_no_video_is_an_error_row(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    (source,) = find_sources([path], CLASSES)
    assert source.picture == Unreadable(str(path), "cannot be opened: no video that OpenCV can read")
    assert source.name == str(path)


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_a_video_that_is_cut_off_says_so_after_its_last_frame(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    codec = "MJPG" if suffix == "avi" else "mp4v"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*codec), 10, (64, 48))
    for number in range(60):
        writer.write(np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    data = whole.read_bytes()
    if suffix == "mp4":  # its index stands at the end: what is damaged is the middle
        cut.write_bytes(data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * len(data) // 3 :])
    else:
        cut.write_bytes(data[: len(data) // 2])
    assert all(isinstance(source.picture, Frame) for source in find_sources([whole], CLASSES))
    *frames, last = find_sources([cut], CLASSES)
    if suffix != "mp4" or len(frames) < 60:  # FFmpeg shows damaged frames of MPEG-4 as they come
        assert isinstance(last.picture, Unreadable)
        assert "cut off or damaged" in last.picture.reason
        assert all(isinstance(source.picture, Frame) for source in frames)
    limited = list(find_sources([cut], CLASSES, SourceOptions(max_frames=2)))
    assert [source.name for source in limited] == [f"{cut}#0", f"{cut}#1"]


class EmptyFrames:
    """A capture that grabs frames and then hands out nothing, as OpenCV does of some damaged files."""

    def isOpened(self) -> bool:
        return True

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, np.ndarray[Any, Any]]:
        return True, np.empty((0, 0, 3), np.uint8)

    def get(self, _property: int) -> float:
        return 30.0

    def release(self) -> None: ...


def test_a_frame_without_pixels_is_the_end_of_a_damaged_video(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: EmptyFrames())
    (source,) = find_sources([clip], CLASSES)
    assert isinstance(source.picture, Unreadable)
    assert "no frame of it can be read" in source.picture.reason


def test_a_place_that_cannot_be_walked_is_a_row_with_its_reason(here: Path) -> None:
    (here / "photos" / "loop").symlink_to("loop")
    (here / "photos" / "above").symlink_to("..")  # walked already, so it is passed over
    (here / "photos" / "nowhere").symlink_to("gone")  # a file that is not named like an image
    sources = find_sources(["photos"], CLASSES)
    found = list(sources)
    assert sources.count == len(found) == 25
    (closed,) = [source for source in found if isinstance(source.picture, Unreadable)]
    assert closed.name == "loop"
    assert isinstance(closed.picture, Unreadable)
    assert closed.picture.reason.startswith("this folder cannot be walked: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_locked_folder_is_a_row_with_its_reason(here: Path) -> None:
    locked = here / "photos" / "checks"
    locked.chmod(0)
    try:
        found = list(find_sources(["photos"], CLASSES))
    finally:
        locked.chmod(0o755)
    assert [source.name for source in found if isinstance(source.picture, Unreadable)] == ["checks"]
    assert len(found) == 13


def test_what_is_no_regular_file_is_a_row_and_is_not_waited_for(here: Path) -> None:
    os.mkfifo(here / "pipe.jpg")
    os.mkfifo(here / "pipe.mp4")
    (here / "zero.png").symlink_to("/dev/zero")
    (here / "gone.png").symlink_to("nothing")
    given = ["pipe.jpg", "pipe.mp4", "zero.png", "gone.png", "photos/checks/0.png"]
    assert names(*given) == given
    reasons = []
    for name in given[:-1]:
        with pytest.raises(ImageError) as error:
            images.read(name)
        reasons.append(error.value.reason)
    assert reasons == [
        "it is a pipe or socket, not a file", "it is a pipe or socket, not a file", "it is a device, not a file",
        "cannot be read: No such file or directory",
    ]  # fmt: skip


def test_a_folder_without_images_says_what_its_files_are_called(tmp_path: Path) -> None:
    for name in ("a.xyz", "b.xyz", "c"):
        (tmp_path / name).touch()
    with pytest.raises(
        DatasetError, match=r"no images in this folder, only 3 files named \.xyz, \(no suffix\); expected"
    ):
        names(tmp_path)


LIVE = [
    pytest.param("0", True, id="the index of a camera"),
    pytest.param("rtsp://192.0.2.1/stream", True, id="an address"),
    pytest.param("videotestsrc ! videoconvert ! appsink", True, id="a GStreamer pipeline"),
    pytest.param("clip.mp4", False, id="a file's name"),
    pytest.param("/dev/null", True, id="a device"),
]


@pytest.mark.parametrize(("given", "live"), LIVE)
def test_cameras_are_told_from_files(in_empty_folder: Path, given: str, live: bool) -> None:
    assert video.is_live(given) is live
    assert find_sources([given], CLASSES).is_live if live else True
    Path("0").mkdir()
    assert not video.is_live("0")  # a folder of that name comes first


@pytest.mark.parametrize("given", ["97", "nosuchsrc ! appsink"])
def test_a_camera_that_is_not_there_is_an_error(
    in_empty_folder: Path, given: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match=f"{given}: cannot be opened: (no such camera|GStreamer)"):
        list(find_sources([given], CLASSES))


def test_a_camera_gets_each_answer_before_its_next_frame(tmp_path: Path) -> None:
    model = write_linear_model(tmp_path / "model.onnx")
    shown = 0

    def camera() -> object:
        nonlocal shown
        while True:
            shown += 1
            yield Frame(f"camera#{shown}", draw("checks", shown))

    with Classifier.open(model, device="cpu") as classifier:
        answers = classifier.predict(camera(), is_live=True)  # type: ignore[arg-type]
        for number in range(1, 6):
            assert next(answers).path == f"camera#{number}"
            assert shown <= number + 1
        answers.close()  # type: ignore[attr-defined]


def test_names_need_little_memory(tmp_path: Path) -> None:
    """Of 20,000 inputs 300 bytes each at the most are kept, and while they are found."""
    import tracemalloc

    for index in range(20_000):
        (tmp_path / f"photo number {index:06d} of a long day.jpg").touch()
    tracemalloc.start()
    sources = find_sources([tmp_path], CLASSES)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sources.count == 20_000
    assert kept / 20_000 < 150
    assert peak / 20_000 < 400


def test_one_file_alone_is_written_as_given(here: Path) -> None:
    write_image(here / "alone.png", draw("checks", 1))
    assert names("./alone.png") == ["./alone.png"]
