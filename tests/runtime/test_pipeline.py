"""How workers share the cores: who loads when, and how many pictures an inference takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgecls.images import Pixels
from edgecls.runtime import pipeline
from edgecls.runtime.classifier import Classifier, cpu_batch_size
from edgecls.runtime.pipeline import Encoded, Frame, Picture, Source
from tests.conftest import write_image


@pytest.mark.parametrize(
    ("limits", "cpu_seconds", "most_at_once"),
    [
        # a busy machine takes its time, so only the limit that is to be passed has its own value
        pytest.param({"_SMALL_CPU_SECONDS": 10, "_SMALL_SECONDS": 10}, 0.0, 1, id="small"),
        pytest.param({"_SMALL_SECONDS": 10}, 0.001, 2, id="large"),
        pytest.param({"_SMALL_CPU_SECONDS": 10}, 0.0, 2, id="small ones on a slow disk"),
    ],
)
def test_small_pictures_are_loaded_one_worker_at_a_time_and_others_at_once(
    exported_run: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], cpu_seconds: float, most_at_once: int
) -> None:
    loading: list[int] = []
    counted, lock = [0], threading.Lock()

    def load(worker: object, picture: Picture, into: Sequence[Pixels], seconds: object) -> tuple[int, int]:
        with lock:
            counted[0] += 1
            loading.append(counted[0])
        time.sleep(0.003)  # the others would come in meanwhile
        ends = time.thread_time() + cpu_seconds
        while time.thread_time() < ends:
            pass
        with lock:
            counted[0] -= 1
        return 8, 8

    monkeypatch.setattr(pipeline.BatchWorker, "_load", load)
    for name, seconds in limits.items():
        monkeypatch.setattr(pipeline, name, seconds)
    frame = Frame("grey", np.full((8, 8, 3), 128, np.uint8))
    with Classifier.open(exported_run, device="cpu", precision="fp32", n_threads=2, batch_size=2) as classifier:
        answered = list(classifier.answers([Source.of(frame)] * 24))
    assert sum(len(each.sources) for each in answered) == 24
    assert max(loading) == most_at_once


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return write_image(tmp_path / "grey.png", np.full((8, 8, 3), 128, np.uint8))


def dealt(
    monkeypatch: pytest.MonkeyPatch,
    run: Path,
    pictures: list[Picture],
    *,
    are_small: bool = True,
    is_live: bool = False,
) -> list[int]:
    """How many pictures each batch of a worker has, where an inference takes two."""
    seconds = 10.0 if are_small else 0.0
    monkeypatch.setattr(pipeline, "_SMALL_CPU_SECONDS", seconds)
    monkeypatch.setattr(pipeline, "_SMALL_SECONDS", seconds)
    sources = [Source.of(picture) for picture in pictures]
    with Classifier.open(run, device="cpu", precision="fp32", n_threads=2, batch_size=2) as classifier:
        # a batch behind the other: what the first ones cost is known before the next ones are dealt
        monkeypatch.setattr(classifier, "n_workers", 1)
        answered = list(classifier.answers(sources, n_sources=len(sources), is_live=is_live))
    assert [source for each in answered for source in each.sources] == sources
    return [len(each.sources) for each in answered]


def test_small_files_are_loaded_for_several_inferences_and_fewer_towards_the_end(
    exported_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_BATCH_SECONDS", 100.0)  # a busy machine takes its time
    sizes = dealt(monkeypatch, exported_run, [photo] * 200)
    most = 2 * pipeline._INFERENCES_A_BATCH
    assert max(sizes) == most
    assert sizes[0] == sizes[-1] == 2
    assert all(size % 2 == 0 for size in sizes)
    shrinking = sizes[len(sizes) - sizes[::-1].index(most) :]
    assert shrinking == sorted(shrinking, reverse=True)
    assert len(shrinking) > 3


@pytest.mark.parametrize("limit", ["_BATCH_PIXELS", "_BATCH_SECONDS"])
def test_a_batch_takes_neither_much_memory_nor_much_time(
    exported_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(pipeline, limit, 1e-9)
    assert set(dealt(monkeypatch, exported_run, [photo] * 40)) == {2}


def test_large_pictures_are_answered_an_inference_at_a_time(
    exported_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(dealt(monkeypatch, exported_run, [photo] * 40, are_small=False)) == {2}


def test_frames_are_not_gathered_and_files_in_memory_up_to_a_bound(
    exported_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_BATCH_SECONDS", 100.0)
    frame = Frame("grey", np.full((8, 8, 3), 128, np.uint8))
    assert set(dealt(monkeypatch, exported_run, [frame] * 40)) == {2}
    file = Encoded("grey", photo.read_bytes())
    assert max(dealt(monkeypatch, exported_run, [file] * 200)) == 2 * pipeline._INFERENCES_A_BATCH
    monkeypatch.setattr(pipeline, "_BATCH_BYTES", len(file.data))
    sizes = dealt(monkeypatch, exported_run, [photo] * 50 + [file] * 50)
    assert max(sizes) > 2
    assert max(sizes[-20:]) == 2


def test_a_camera_is_answered_picture_by_picture_even_where_their_number_is_known(
    exported_run: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(dealt(monkeypatch, exported_run, [photo] * 40, is_live=True)) == {1}


def test_answers_do_not_depend_on_how_pictures_are_dealt(
    exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (101, 8, 8, 3), np.uint8)
    files = [write_image(tmp_path / f"{number}.png", pixels) for number, pixels in enumerate(noise)]
    monkeypatch.setattr(pipeline, "_BATCH_SECONDS", 100.0)
    with Classifier.open(exported_run, device="cpu", precision="fp32", n_threads=2, batch_size=2) as classifier:
        in_turns = list(classifier.predict(files, top_k=2))
        monkeypatch.setattr(pipeline, "_INFERENCES_A_BATCH", 1)
        assert list(classifier.predict(files, top_k=2)) == in_turns
    assert [prediction.path for prediction in in_turns] == list(map(str, files))


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [((224, 224), 8), ((384, 384), 8), ((128, 128), 12), ((64, 64), 48), ((32, 32), 64), ((64, 256), 12)],
)
def test_the_batch_on_a_cpu_follows_the_size_of_the_input(size_hw: tuple[int, int], expected: int) -> None:
    assert cpu_batch_size(size_hw) == expected
