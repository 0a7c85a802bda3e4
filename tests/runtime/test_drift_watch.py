"""Pictures against the validation images of their model, as `predict` and `serve` tell it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgecls.runs import BASELINE
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.drift_watch import DriftWatch
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions
from edgecls.runtime.pipeline import Frame, Source
from edgecls.runtime.predict import PredictReport, predict
from edgecls.tables.predict import predicted
from tests.conftest import draw, write_image, write_linear_model


def watched(classifier: Classifier, watch: DriftWatch, pictures: list[np.ndarray]) -> None:
    sources = [Source.of(Frame(str(number), picture)) for number, picture in enumerate(pictures)]
    for answered in classifier.answers(sources, n_sources=len(sources)):
        watch.add(answered, classifier.predictions(answered, 1))


def of_one_kind(n: int, first: int = 500) -> list[np.ndarray]:
    return [draw(("stripes", "checks")[seed % 2], seed) for seed in range(first, first + n)]


def test_the_last_pictures_count(exported_run: Path) -> None:
    with Classifier.open(exported_run, device="cpu") as classifier:
        watch = DriftWatch.of(classifier, window=60)
        assert watch is not None
        watched(classifier, watch, of_one_kind(10))
        assert watch.drift() is None
        watched(classifier, watch, [np.zeros((90, 90, 3), np.uint8)] * 100)
        drift = watch.drift()
        assert drift is not None
        assert drift.n == 60
        assert {"size", "brightness"} <= set(drift.different)
        watched(classifier, watch, of_one_kind(60))
        drift = watch.drift()
        assert drift is not None
        assert (drift.n, "size" in drift.different, "brightness" in drift.different) == (60, False, False)


def told(run: Path, folder: Path, report: Path) -> tuple[PredictReport, str]:
    options = PredictOptions((folder,), (str(run),), ClassifierOptions(device="cpu"), rows=RowsOptions(report))
    result = predict(options)
    return result, " ".join(line for line in predicted(result) if isinstance(line, str))


def test_predict_warns_of_pictures_that_differ(exported_run: Path, tmp_path: Path) -> None:
    for seed in range(40):
        write_image(tmp_path / "large" / f"{seed}.png", draw("stripes", seed, size=77))
        write_image(tmp_path / "same" / f"{seed}.png", draw(("stripes", "checks")[seed % 2], seed + 700))
    result, line = told(exported_run, tmp_path / "large", tmp_path / "rows.csv")
    assert line.startswith("warning: these pictures differ from the validation images in ")
    assert "size (PSI " in line
    assert result.drift is not None
    assert result.to_json()["drift"]["features"]["size"]["psi"] > 1
    result, line = told(exported_run, tmp_path / "same", tmp_path / "rows.csv")
    assert result.drift is not None
    assert "size" not in line


@pytest.mark.parametrize("content", [None, "{}"])
def test_without_a_sound_baseline_nothing_is_said(exported_run: Path, tmp_path: Path, content: str | None) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    (run / BASELINE).unlink()
    if content is not None:
        (run / BASELINE).write_text(content)
    write_image(tmp_path / "photos" / "one.png", draw("stripes", 1))
    result, line = told(run, tmp_path / "photos", tmp_path / "rows.csv")
    assert (result.drift, line) == (None, "")


def test_another_model_in_a_run_s_folder_is_not_compared_with_that_run(exported_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported_run, run)
    write_image(tmp_path / "photos" / "one.png", draw("stripes", 1))
    result, _ = told(write_linear_model(run / "other.onnx"), tmp_path / "photos", tmp_path / "rows.csv")
    assert (result.images, result.errors, result.drift) == (1, 0, None)


def test_several_views_are_not_compared_by_confidence(exported_run: Path) -> None:
    with Classifier.open(exported_run, device="cpu", tta="flip") as classifier:
        watch = DriftWatch.of(classifier)
        assert watch is not None
        watched(classifier, watch, of_one_kind(30))
        drift = watch.drift()
        assert drift is not None
        assert set(drift.features) == {"answers", "brightness", "size"}


def test_unreadable_pictures_are_not_counted(exported_run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    picture = write_image(tmp_path / "one.png", draw("stripes", 1))
    with Classifier.open(exported_run, device="cpu") as classifier:
        watch = DriftWatch.of(classifier)
        assert watch is not None
        sources = [Source.of(tmp_path / "broken.jpg"), Source.of(picture)]
        for answered in classifier.answers(sources, n_sources=2):
            watch.add(answered, classifier.predictions(answered, 1))
        assert watch.n == 1
