"""Test-time augmentation: what each view shows, and that all of them together are a plain mean or vote."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecls import images
from edgecls.errors import OptionError
from edgecls.manifest import Preprocessing
from edgecls.metrics import softmax
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import FAMILIES, ClassifierOptions, Combine, PredictOptions, RowsOptions, TtaOptions
from edgecls.runtime.predict import predict
from edgecls.runtime.views import MAX_VIEWS, View, combined, views_of
from tests.conftest import draw, rows_of, write_image, write_linear_model

SMALL = Preprocessing(size_hw=(28, 28))
PICTURE = draw("checks", 3, size=64)


def views_by_name(*families: str, own: Preprocessing = SMALL) -> dict[str, View]:
    views = views_of(TtaOptions(families), own)
    assert len({view.name for view in views}) == len(views)
    return {view.name: view for view in views}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_every_family_has_the_plain_view_first_and_no_view_twice(family: str, fraction: float) -> None:
    own = Preprocessing(size_hw=(28, 28), crop_fraction=fraction)
    views = views_of(TtaOptions((family,)), own)
    shown = [view.pixels(PICTURE, own) for view in views]
    assert views[0].name == "plain"
    assert np.array_equal(shown[0], images.resize_and_crop(PICTURE, own))
    assert all(pixels.shape == (28, 28, 3) and pixels.dtype == np.uint8 for pixels in shown)
    assert len({pixels.tobytes() for pixels in shown}) == len(views) > 1


def test_the_number_of_views_is_what_the_name_says() -> None:
    counts = {family: len(views_of(TtaOptions((family,)), SMALL)) for family in FAMILIES}
    assert counts == {
        "flip": 2, "flips": 4, "five-crop": 5, "ten-crop": 10, "shifts": 5, "scales": 3, "rotate": 3, "blur": 2
    }  # fmt: skip


def test_flips_are_flips_of_the_plain_view() -> None:
    plain, views = images.resize_and_crop(PICTURE, SMALL), views_by_name("flips")
    assert np.array_equal(views["mirror"].pixels(PICTURE, SMALL), plain[:, ::-1])
    assert np.array_equal(views["upside-down"].pixels(PICTURE, SMALL), plain[::-1])
    assert np.array_equal(views["mirror+upside-down"].pixels(PICTURE, SMALL), plain[::-1, ::-1])


def test_the_corner_crops_are_the_corners_of_the_resized_picture() -> None:
    resized = cv2.resize(PICTURE, (32, 32), interpolation=cv2.INTER_AREA)
    views = views_by_name("five-crop")
    for name, corner in (
        ("top-left", resized[:28, :28]),
        ("top-right", resized[:28, 4:]),
        ("bottom-left", resized[4:, :28]),
        ("bottom-right", resized[4:, 4:]),
    ):
        assert np.array_equal(views[name].pixels(PICTURE, SMALL), corner), name


def test_a_shift_moves_whole_pixels_and_at_least_one() -> None:
    plain, views = images.resize_and_crop(PICTURE, SMALL), views_by_name("shifts")
    assert np.array_equal(views["down"].pixels(PICTURE, SMALL)[1:], plain[:-1])
    assert np.array_equal(views["up"].pixels(PICTURE, SMALL)[:-1], plain[1:])
    assert np.array_equal(views["right"].pixels(PICTURE, SMALL)[:, 1:], plain[:, :-1])
    assert np.array_equal(views["left"].pixels(PICTURE, SMALL)[:, :-1], plain[:, 1:])


def test_a_turn_turns_about_the_centre() -> None:
    dot = np.zeros((28, 28, 3), np.uint8)
    dot[4:7, 13:15] = 255  # above the centre
    own = Preprocessing(size_hw=(28, 28), crop_fraction=1.0)
    views = views_by_name("rotate", own=own)
    column = {
        name: view.pixels(dot, own).astype(float).sum(axis=(0, 2)) @ np.arange(28) for name, view in views.items()
    }
    mass = dot.astype(float).sum()
    assert column["left turn"] / mass < 13 < 14 < column["right turn"] / mass


def test_families_combine_each_with_each_and_the_same_view_counts_once() -> None:
    assert len(views_by_name("flip", "shifts")) == 10
    assert views_by_name("flip", "five-crop").keys() == {
        *(name for name in views_by_name("ten-crop") if "+" not in name),
        *("+".join(reversed(name.split("+"))) for name in views_by_name("ten-crop") if "+" in name),
    }
    assert len(views_of(TtaOptions(("flip", "ten-crop")), SMALL)) == 10


def test_too_many_views_and_unknown_ones_are_errors() -> None:
    with pytest.raises(OptionError, match=f"300 views an image, at most {MAX_VIEWS}"):
        views_of(TtaOptions(("ten-crop", "shifts", "rotate", "blur")), SMALL)
    with pytest.raises(OptionError, match="--tta flop: expected views out of flip, flips"):
        TtaOptions.parse("flip,flop")
    with pytest.raises(OptionError, match="--tta-combine mode"):
        TtaOptions(("flip",), "mode")  # type: ignore[arg-type]


def plainly_combined(logits: list[list[float]], temperature: float, combine: Combine) -> list[float]:
    """One image: a row a view."""
    rows = [softmax(np.array(row) / temperature).tolist() for row in logits]
    n_labels = len(rows[0])
    if combine == "logit":
        means = [sum(row[label] for row in logits) / len(logits) / temperature for label in range(n_labels)]
        return softmax(np.array(means)).tolist()
    means = [sum(row[label] for row in rows) / len(rows) for label in range(n_labels)]
    if combine == "probability":
        return means
    votes = [sum(row.index(max(row)) == label for row in rows) for label in range(n_labels)]
    return [votes[label] / len(rows) for label in range(n_labels)]


@given(
    st.integers(2, 5).flatmap(
        lambda n_labels: st.lists(
            st.lists(st.integers(-8, 8).map(float), min_size=n_labels, max_size=n_labels), min_size=1, max_size=6
        )
    ),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from(["probability", "logit", "vote"]),
)
def test_views_combine_like_a_plain_loop(logits: list[list[float]], temperature: float, combine: Combine) -> None:
    together = combined(np.array([logits, logits], np.float32), temperature, combine)
    expected = plainly_combined(logits, temperature, combine if len(logits) > 1 else "logit")
    assert together[0] == pytest.approx(expected, abs=1e-5)
    assert np.array_equal(together[0], together[1])
    if combine == "vote" and len(logits) > 1:  # a tie goes to the higher mean probability
        means = plainly_combined(logits, temperature, "probability")
        tied = [label for label, share in enumerate(expected) if share == max(expected)]
        assert means[int(together[0].argmax())] == pytest.approx(max(means[label] for label in tied), abs=1e-6)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for index in range(30):
        write_image(tmp_path / "photos" / "abc"[index % 3] / f"{index}.png", draw("checks", index, size=20))
    return tmp_path / "photos"


@pytest.mark.parametrize("combine", ["probability", "logit", "vote"])
def test_a_classifier_with_views_answers_like_a_slow_loop_over_them(
    tmp_path: Path, labelled: Path, combine: Combine
) -> None:
    model = write_linear_model(tmp_path / "model.onnx", temperature=1.7)
    paths = list(images.find_images(labelled))
    with Classifier.open(model, device="cpu", tta="flip,shifts", tta_combine=combine, batch_size=7) as classifier:
        own, predictions = classifier.manifest.preprocessing, list(classifier.predict(paths, top_k=3))
        assert len(classifier.members[0].views) == 10
        for path, prediction in zip(paths, predictions, strict=True):
            image = images.decode(path.read_bytes(), own)
            logits = [
                classifier.logits(view.pixels(image, own)[None])[0].tolist() for view in classifier.members[0].views
            ]
            expected = plainly_combined(logits, 1.7, combine)
            for label, probability in prediction.top:
                assert probability == pytest.approx(expected["abc".index(label)], abs=1e-5)
            assert expected["abc".index(prediction.label)] == pytest.approx(max(expected), abs=1e-5)


def test_all_views_of_a_batch_go_into_one_call(tmp_path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_linear_model(tmp_path / "model.onnx")
    with Classifier.open(model, device="cpu", tta="flips", batch_size=16, n_threads=1) as classifier:
        sizes: list[int] = []
        infer = classifier.members[0].backend.infer
        monkeypatch.setattr(
            classifier.members[0].backend, "infer", lambda x, times=None: sizes.append(len(x)) or infer(x)
        )
        assert len(list(classifier.predict(images.find_images(labelled)))) == 30
    assert sizes == [16] * 7 + [8]


def test_the_report_counts_what_each_view_fixed_and_broke(
    tmp_path: Path, labelled: Path, in_empty_folder: Path
) -> None:
    model = write_linear_model(tmp_path / "model.onnx")
    tta = TtaOptions(("flips",))
    (labelled / "a" / "broken.png").write_bytes(b"")
    report = predict(
        PredictOptions(
            (labelled,), (str(model),), ClassifierOptions(device="cpu", tta=tta), rows=RowsOptions(Path("rows.csv"))
        )
    ).tta
    assert report is not None
    right: dict[str, list[bool]] = {}
    with Classifier.open(model, device="cpu") as classifier:
        own = classifier.manifest.preprocessing
        for path in images.find_images(labelled):
            if path.stat().st_size:
                image = images.decode(path.read_bytes(), own)
                for view in views_of(tta, own):
                    answered = "abc"[int(classifier.logits(view.pixels(image, own)[None]).argmax())]
                    right.setdefault(view.name, []).append(answered == path.parent.name)
    together = [row["label"] == row["path"][0] for row in rows_of(Path("rows.csv")) if row["status"] == "ok"]
    assert report.n == 30
    for view, answers in zip((*report.views, report.all), [*right.values(), together], strict=True):
        assert view.accuracy == pytest.approx(np.mean(answers))
        assert view.gained == pytest.approx(np.mean(answers) - np.mean(right["plain"]))
        assert view.fixed == sum(a and not p for a, p in zip(answers, right["plain"], strict=True))
        assert view.broken == sum(p and not a for a, p in zip(answers, right["plain"], strict=True))
    assert report.views[0].added_ms == 0
    assert report.all.added_ms == pytest.approx(3 * report.views[1].added_ms)
    assert json.loads(json.dumps(report.verdict)).startswith("not worth it here")


def test_views_that_fix_enough_are_worth_it() -> None:
    from edgecls.runtime.tally import ViewTally

    tally = ViewTally(2)
    truth = np.zeros(100, np.int64)
    plain = np.r_[np.ones(20, np.int64), np.zeros(80, np.int64)]
    tally.add(np.column_stack([plain, plain]), truth, truth)
    report = tally.report(["plain", "mirror"], "probability", 2.0)
    assert report is not None
    assert (report.is_worth_it, report.all.fixed, report.all.broken) == (True, 20, 0)
    assert report.verdict.startswith("worth it: +20.00 points of accuracy for 2.0 ms more for each image (p = ")
