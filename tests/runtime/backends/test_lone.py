"""One model opened twice: a picture that comes alone gets all threads, many get a lane each."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edgecls.errors import RunError
from edgecls.images import Pixels
from edgecls.runtime.backends.lone import LoneOrMany, lanes_of
from edgecls.runtime.backends.protocol import Backend
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import ClassifierOptions
from edgecls.runtime.stages import StageTimes
from tests.conftest import write_linear_model

LABELS = ("stripes", "checks", "spots")


class Noting(Backend):
    """Answers zeros, notes how many images it was given, and waits while it is held."""

    name = "onnxruntime-cpu"
    n_lanes = 2

    def __init__(self) -> None:
        self.given: list[int] = []
        self.entered, self.held = threading.Event(), threading.Event()
        self.held.set()
        self.is_closed = False

    def infer(self, images: Pixels, times: StageTimes | None = None) -> np.ndarray:  # type: ignore[type-arg]
        self.given.append(len(images))
        self.entered.set()
        self.held.wait(10)
        return np.zeros((len(images), 3), np.float32)

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def both() -> tuple[Noting, Noting, LoneOrMany]:
    many, lone = Noting(), Noting()
    many.manifest = lone.manifest = None  # type: ignore[assignment]
    return many, lone, LoneOrMany(many, lone, 2)


def images(n: int) -> Pixels:
    return np.zeros((n, 4, 4, 3), np.uint8)


def test_one_picture_with_its_views_goes_to_the_lone_lane_and_a_batch_does_not(
    both: tuple[Noting, Noting, LoneOrMany],
) -> None:
    many, lone, model = both
    for n in (1, 2, 3, 8):
        model.infer(images(n))
    assert (lone.given, many.given) == ([1, 2], [3, 8])


def test_a_picture_beside_another_goes_to_a_lane_of_its_own(both: tuple[Noting, Noting, LoneOrMany]) -> None:
    many, lone, model = both
    lone.held.clear()
    first = threading.Thread(target=model.infer, args=(images(1),))
    first.start()
    lone.entered.wait(10)
    model.infer(images(1))
    lone.held.set()
    first.join()
    model.infer(images(1))
    assert (lone.given, many.given) == ([1, 1], [1])


def test_an_engine_that_fails_is_not_taken_for_one_that_runs(both: tuple[Noting, Noting, LoneOrMany]) -> None:
    many, lone, model = both
    lone.infer = lambda images, times=None: 1 / 0  # type: ignore[assignment, method-assign]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            model.infer(images(1))
    assert many.given == []


def test_a_classifier_gives_the_same_answers_with_it(tmp_path: Path) -> None:
    model = write_linear_model(tmp_path / "model.onnx", LABELS)
    batch = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    options = ClassifierOptions(device="cpu", n_threads=2, has_lone_lane=True)
    with Classifier.of([model], options) as classifier, Classifier.open(model, device="cpu") as plain:
        assert isinstance(classifier.members[0].backend, LoneOrMany)
        batch = np.resize(batch, (5, *classifier.manifest.preprocessing.size_hw, 3))
        np.testing.assert_array_equal(classifier.logits(batch), plain.logits(batch))
        np.testing.assert_array_equal(classifier.logits(batch[:1]), plain.logits(batch[:1]))
        assert classifier.n_workers == 2
    with pytest.raises(RunError, match="has been closed"):
        classifier.logits(batch[:1])


def test_one_thread_needs_no_second_lane(tmp_path: Path) -> None:
    model = write_linear_model(tmp_path / "model.onnx", LABELS)
    with Classifier.of([model], ClassifierOptions(device="cpu", n_threads=1, has_lone_lane=True)) as classifier:
        assert not isinstance(classifier.members[0].backend, LoneOrMany)


def test_the_lone_lane_is_proved_with_one_image_at_a_time(both: tuple[Noting, Noting, LoneOrMany]) -> None:
    many, lone, model = both
    assert [len(lane.infer(images(3))) for lane in lanes_of(model)] == [3, 3]
    assert (many.given, lone.given) == ([3], [1, 1, 1])  # a batch would leave its memory behind
    assert lanes_of(many) == (many,)


def test_both_are_closed(both: tuple[Noting, Noting, LoneOrMany]) -> None:
    many, lone, model = both
    model.close()
    assert many.is_closed
    assert lone.is_closed
