"""Several models: their votes, their labels by name, and a report that says which of them are worth their time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecls import Classifier, images
from edgecls.errors import OptionError
from edgecls.manifest import Manifest, Preprocessing
from edgecls.metrics import softmax
from edgecls.runtime.ensemble import Voting, member_names
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions, VoteOptions
from edgecls.runtime.pipeline import Source
from edgecls.runtime.predict import PredictReport, predict
from edgecls.runtime.tally import EnsembleTally
from tests.conftest import draw, rows_of, write_image, write_linear_model
from tests.runtime.test_votes import plain_winner

ON_CPU = ClassifierOptions(device="cpu")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Three members that differ in size, preprocessing and in the order of their labels."""
    return [
        write_linear_model(tmp_path / "a.onnx", "abc", 8, 1, metrics={"validation_accuracy": 0.6, "parameters": 576}),
        write_linear_model(
            tmp_path / "b.onnx",
            "cab",
            12,
            2,
            preprocessing=Preprocessing(size_hw=(12, 12), crop_fraction=1.0, resize="squash"),
            metrics={"validation_accuracy": 0.9},
        ),
        write_linear_model(tmp_path / "c.onnx", "bca", 10, 3, metrics={"validation_accuracy": 0.5}, temperature=2.0),
    ]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(60):
        kind = "checks" if index % 2 else "stripes"
        write_image(tmp_path / "photos" / "abc"[index % 3] / f"{index}.png", draw(kind, index, size=20 + index % 7))
    return tmp_path / "photos"


def alone(model: Path, paths: Sequence[Path]) -> list[dict[str, float]]:
    """Probability by label, one picture at a time."""
    answers = []
    with Classifier.open(model, device="cpu", n_threads=1) as classifier:
        manifest = classifier.manifest
        for path in paths:
            logits = classifier.logits(images.load(path, manifest.preprocessing)[None])[0]
            values = softmax(logits / manifest.temperature).tolist()
            answers.append(dict(zip(manifest.labels, values, strict=True)))
    return answers


@pytest.mark.parametrize("vote", ["majority", "weighted", "soft"])
def test_an_ensemble_answers_like_a_slow_loop_over_its_members(models: list[Path], photos: Path, vote: Any) -> None:
    paths = list(images.find_images(photos))
    members = [alone(model, paths) for model in models]
    with Classifier.open([str(model) for model in models], vote=vote, device="cpu") as ensemble:
        predictions = list(ensemble.predict(paths, top_k=3))
    differing = 0
    for index, prediction in enumerate(predictions):
        own = [max(each[index], key=lambda label: each[index][label]) for each in members]
        weights = [60, 90, 50] if vote == "weighted" else [1, 1, 1]
        table = [[round(each[index][label] * 10**6) for label in "abc"] for each in members]
        mean = {label: np.average([each[index][label] for each in members], weights=weights) for label in "abc"}
        if vote == "soft":
            expected = max(mean, key=lambda label: mean[label])
        else:
            expected = "abc"[plain_winner(table, weights, None)]
        assert prediction.label == expected
        assert prediction.members == tuple(own)
        assert prediction.agreement == pytest.approx(own.count(expected) / 3)
        assert prediction.entropy == pytest.approx(-sum(p * np.log(p) for p in mean.values()), abs=1e-5)
        assert prediction.probability == pytest.approx(mean[expected], abs=1e-5)
        assert sorted(label for label, _ in prediction.top) == ["a", "b", "c"]
        differing += len(set(own)) > 1
    assert differing > 10  # or nothing was voted on


def test_a_tie_goes_to_the_member_that_is_named(models: list[Path], photos: Path) -> None:
    paths = list(images.find_images(photos))
    ties = 0
    with Classifier.open([str(m) for m in models], tie_break=str(models[2]), device="cpu") as ensemble:
        assert ensemble.voting.options.tie_break == "c"
        for prediction in ensemble.predict(paths):
            if len(set(prediction.members)) == 3:
                assert prediction.label == prediction.members[2]
                ties += 1
    assert ties > 3


def test_every_file_is_read_and_decoded_once_for_all_members(
    models: list[Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, decoded = [], []
    plain_read, plain_decode = images.read, images.decode_file
    monkeypatch.setattr(images, "read", lambda path: read.append(path) or plain_read(path))
    monkeypatch.setattr(images, "decode_file", lambda *given: decoded.append(1) or plain_decode(*given))
    with Classifier.open([str(m) for m in models], device="cpu") as ensemble:
        assert len(list(ensemble.predict(images.find_images(photos)))) == 60
    assert (len(read), len(set(read)), len(decoded)) == (60, 60, 60)


def test_a_member_sees_the_pixels_that_it_sees_alone(tmp_path: Path) -> None:
    """A large JPEG is decoded at reduced scale, which is another one for a small network than for a large one."""
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes())
    models = [str(write_linear_model(tmp_path / f"{size}.onnx", size=size, seed=1)) for size in (16, 64, 190)]
    alone = []
    for model in models:
        with Classifier.open(model, device="cpu") as classifier:
            alone.append(next(iter(classifier.predict([photo]))).probability)
    with Classifier.open(models, device="cpu") as ensemble:
        answered = next(ensemble.answers([Source.of(photo)], n_sources=1))
    assert [float(each.probabilities.max()) for each in answered.members] == pytest.approx(alone, abs=1e-6)


def test_members_with_another_background_see_their_own(tmp_path: Path) -> None:
    clear = tmp_path / "clear.png"
    import cv2

    clear.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 4), np.uint8))[1].tobytes())
    files = [
        write_linear_model(
            tmp_path / f"{name}.onnx", seed=1, preprocessing=Preprocessing(size_hw=(8, 8), background=(level,) * 3)
        )
        for name, level in (("white", 255), ("black", 0))
    ]
    with Classifier.open([str(file) for file in files], device="cpu") as ensemble:
        (prediction,) = ensemble.predict([clear])
    # what is white to one is black to the other: their logits have opposite signs
    assert prediction.members[0] != prediction.members[1]


def run(models: Sequence[Path], photos: Path, **vote: Any) -> PredictReport:
    return predict(
        PredictOptions(
            (photos,),
            tuple(str(model) for model in models),
            ON_CPU,
            VoteOptions(**vote),
            rows=RowsOptions(Path("rows.csv")),
        )
    )


def test_rows_and_report_say_who_was_right(models: list[Path], photos: Path, in_empty_folder: Path) -> None:
    (photos / "a" / "broken.png").write_bytes(b"")
    report = run(models, photos, tie_break=str(models[1]), subsets=True)
    rows = [row for row in rows_of(Path("rows.csv")) if row["status"] == "ok"]
    assert list(rows[0])[5:] == ["agreement", "entropy", "a", "b", "c"]
    truth = [row["path"][0] for row in rows]
    right = {name: [row[name] == label for row, label in zip(rows, truth, strict=True)] for name in "abc"}
    found = report.ensemble
    assert found is not None
    assert (found.n, found.vote, found.tie_break, report.errors) == (60, "majority", "b", 1)
    assert found.accuracy == report.accuracy == np.mean([r["label"] == t for r, t in zip(rows, truth, strict=True)])
    for member in found.members:
        mine, others = right[member.name], [right[name] for name in "abc" if name != member.name]
        assert member.accuracy == np.mean(mine)
        assert member.only_right == sum(m and not any(o) for m, *o in zip(mine, *others, strict=True))
        assert member.only_wrong == sum(not m and all(o) for m, *o in zip(mine, *others, strict=True))
        assert member.infer_ms > 0
    assert [member.parameters for member in found.members] == [576, None, None]
    assert len(found.subsets) == 7
    by_members = {subset.members: subset for subset in found.subsets}
    assert by_members["a", "b", "c"].accuracy == found.accuracy
    for name in "abc":
        assert by_members[name,].accuracy == np.mean(right[name])
    times = {name: by_members[name,].infer_ms for name in "abc"}
    assert by_members["a", "c"].infer_ms == pytest.approx(times["a"] + times["c"])
    best = max(found.subsets, key=lambda each: (each.accuracy, -each.infer_ms))
    assert best.is_on_front
    assert found.subsets[0].is_on_front


def test_the_front_holds_what_nothing_is_both_better_and_faster_than() -> None:
    manifests = [Manifest(("a", "b"), Preprocessing(), "linear")] * 2
    tally = EnsembleTally(Voting.of(manifests, ["slow", "fast"], VoteOptions()), with_subsets=True)
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    # of four images the first member gets three, the second one, the two together none: ties go to the surer one,
    # and that is always the wrong one
    first, second = [right, right, right, wrong], [[0.05, 0.95]] * 3 + [[0.85, 0.15]]
    tally.add(np.array([first, second]), np.zeros(4, np.int64))
    tally.add_time([0.004, 0.001], 4)
    reports = {report.members: report for report in tally.subset_reports()}
    assert {members: report.is_on_front for members, report in reports.items()} == {
        ("slow",): True,
        ("fast",): True,
        ("slow", "fast"): False,
    }
    assert reports["slow",].infer_ms == pytest.approx(1.0)
    assert tally.only_right.tolist() == [3, 1]
    assert tally.only_wrong.tolist() == [1, 3]


def test_pictures_that_are_all_broken_are_rows_too(models: list[Path], tmp_path: Path, in_empty_folder: Path) -> None:
    (tmp_path / "broken").mkdir()
    for index in range(20):
        (tmp_path / "broken" / f"{index}.jpg").write_bytes(b"no picture")
    for vote in ("majority", "soft", "weighted"):
        report = run(models, tmp_path / "broken", vote=vote)
        assert (report.images, report.errors, report.accuracy) == (20, 20, None)
    with Classifier.open([str(model) for model in models], device="cpu") as ensemble:
        (prediction,) = ensemble.predict(["nothing.jpg"])
        assert (prediction.status, prediction.members) == ("error", ())


def test_a_tie_breaker_may_be_named_by_any_path_to_it(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models[0].parent)
    with Classifier.open([str(model) for model in models], tie_break="./c.onnx", device="cpu") as ensemble:
        assert ensemble.voting.options.tie_break == "c"
    with pytest.raises(OptionError, match="are for several models"):
        Classifier.open(str(models[0]), vote="soft")


def test_other_labels_are_an_error_that_names_them(tmp_path: Path, models: list[Path]) -> None:
    other = write_linear_model(tmp_path / "other.onnx", "abd")
    with pytest.raises(OptionError, match=r"other: other labels than the first model's: it lacks c; only it has d"):
        Classifier.open([str(models[0]), str(other)], device="cpu")


BAD = [
    pytest.param({"tie_break": "zebra"}, "--tie-break zebra: expected probability or one of the models: a", id="who"),
    pytest.param({"vote": "soft", "tie_break": "a"}, "with --vote soft there are no ties", id="no ties"),
    pytest.param({"vote": "loud"}, "--vote loud: expected one of majority, soft, weighted", id="no such vote"),
]


@pytest.mark.parametrize(("vote", "message"), BAD)
def test_bad_votes_are_worded_with_the_flag(models: list[Path], vote: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Classifier.open([str(model) for model in models[:2]], device="cpu", **vote)


def test_weights_need_a_measured_accuracy(tmp_path: Path, models: list[Path]) -> None:
    unmeasured = write_linear_model(tmp_path / "unmeasured.onnx")
    with pytest.raises(OptionError, match="unmeasured has none"):
        Classifier.open([str(models[0]), str(unmeasured)], vote="weighted", device="cpu")


def test_members_are_named_by_what_makes_them_differ(tmp_path: Path) -> None:
    assert member_names(["runs/a", "runs/b.onnx"]) == ["a", "b"]
    assert member_names(["x/model.onnx", "y/model.onnx"]) == ["x/model", "y/model"]
    assert member_names(["runs/a", "runs/a"]) == ["a-1", "a-2"]
    (tmp_path / "runs" / "real").mkdir(parents=True)
    (tmp_path / "runs" / "latest").symlink_to("real")
    assert member_names([str(tmp_path / "runs" / "latest"), "other"]) == ["real", "other"]


def test_an_ensemble_is_closed_with_its_members(models: list[Path], photos: Path) -> None:
    with Classifier.open([str(model) for model in models[:2]], device="cpu") as ensemble:
        pass
    with pytest.raises(Exception, match="has been closed"):
        list(ensemble.predict(images.find_images(photos)))
