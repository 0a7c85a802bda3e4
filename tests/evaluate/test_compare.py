"""Several models on the same images: the table, the tests, the pictures they differ on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from edgecls.cli import app
from edgecls.errors import OptionError
from edgecls.evaluate.compare import CompareResult, compare
from edgecls.evaluate.options import CompareOptions
from edgecls.evaluate.runs_table import RunsResult
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import ClassifierOptions, VoteOptions
from tests.conftest import write_image, write_linear_model

CPU = ClassifierOptions("fp32", "cpu")
LABELS = "abc"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Three models of random weights; the third has its labels in another order."""
    return [
        write_linear_model(tmp_path / f"{name}.onnx", labels, seed=seed)
        for name, labels, seed in (("one", "abc", 1), ("two", "abc", 2), ("three", "cab", 3))
    ]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(60):
        picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        write_image(tmp_path / "pictures" / LABELS[index % 3] / f"{index}.png", picture)
    return tmp_path / "pictures"


def of(models: list[Any], pictures: Path) -> CompareResult:
    result = compare(CompareOptions(tuple(map(str, models)), pictures, CPU))
    assert isinstance(result, CompareResult)
    return result


def answers(model: Path, pictures: Path) -> dict[Path, str]:
    """What one model says of every picture, by a plain loop."""
    paths = sorted(pictures.rglob("*.png"))
    with Classifier.open(model, device="cpu") as classifier:
        return {path: each.label for path, each in zip(paths, classifier.predict(paths), strict=True)}


def test_every_model_is_counted_as_a_plain_loop_counts_it(models: list[Path], pictures: Path) -> None:
    result = of(models, pictures)
    told = [answers(model, pictures) for model in models]
    right = {path: [each[path] == path.parent.name for each in told] for path in told[0]}
    for index, each in enumerate(result.models):
        own = [hits[index] for hits in right.values()]
        assert each.accuracy.value == pytest.approx(np.mean(own))
        assert each.unique_correct == sum(hits[index] and sum(hits) == 1 for hits in right.values())
        assert each.unique_errors == sum(not hits[index] and sum(hits) == 2 for hits in right.values())
    assert [each.name for each in result.models] == ["one.onnx", "two.onnx", "three.onnx"]
    assert result.n == 60


def test_each_is_tested_against_the_best_with_holms_correction(models: list[Path], pictures: Path) -> None:
    result = of(models, pictures)
    best = next(each for each in result.models if each.name == result.best)
    assert best.difference is None
    assert best.accuracy.value == max(each.accuracy.value for each in result.models)
    others = [each for each in result.models if each.difference]
    raw = []
    for each in others:
        assert each.difference is not None
        broken, fixed = each.difference.broken, each.difference.fixed
        assert each.difference.p_value == pytest.approx(binomtest(broken, broken + fixed).pvalue)
        raw.append(each.difference.p_value)
    low, high = sorted(others, key=lambda each: each.difference.p_value if each.difference else 0)
    assert low.p_value == pytest.approx(min(1, 2 * min(raw)))
    assert high.p_value == pytest.approx(max(low.p_value or 0, max(raw)))


def test_flips_are_the_pictures_that_one_of_two_gets_right(models: list[Path], pictures: Path) -> None:
    result = of(models, pictures)
    by_name = dict(zip((each.name for each in result.models), models, strict=True))
    best = answers(by_name[result.best], pictures)
    for flips in result.flips:
        own = answers(by_name[flips.name], pictures)
        for _, other in flips.fixed:
            assert own[other.path] == other.path.parent.name != best[other.path]
        for mine, _ in flips.broken:
            assert best[mine.path] == mine.path.parent.name != own[mine.path]
    differs = [path for path in best if len({answers(model, pictures)[path] for model in models}) > 1]
    for each in result.disagreements:
        assert each.share == pytest.approx(sum(path.parent.name == each.label for path in differs) / each.n)


def test_a_vote_and_views_stand_beside_their_members(models: list[Path], pictures: Path) -> None:
    one, two, three = models
    result = of([one, f"{one}@tta=flip", f"{one}+{two}+{three}@vote=soft"], pictures)
    assert [each.name for each in result.models] == [
        "one.onnx",
        "one.onnx@tta=flip",
        "one.onnx+two.onnx+three.onnx@vote=soft",
    ]
    with Classifier.open(models, device="cpu", vote="soft") as vote:
        paths = sorted(pictures.rglob("*.png"))
        right = [each.label == path.parent.name for path, each in zip(paths, vote.predict(paths), strict=True)]
    assert result.models[2].accuracy.value == pytest.approx(np.mean(right))
    assert result.models[0].cost.bytes == one.stat().st_size
    assert result.models[0].cost.macs == 8 * 8 * 3 * 3  # one product: every value of the picture, for every class


def test_what_cannot_be_compared_is_refused(models: list[Path], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="one model: expected 2 to 10"):
        of(models[:1], pictures)
    other = write_linear_model(tmp_path / "other.onnx", "abd")
    with pytest.raises(OptionError, match=r"other\.onnx|other: other labels than the first model's: it lacks c"):
        of([models[0], other], pictures)


def test_a_model_that_is_named_twice_is_refused(models: list[Path], pictures: Path) -> None:
    with pytest.raises(OptionError, match="is named twice; expected different models or settings"):
        of([models[0], models[1], models[0]], pictures)


def test_every_model_that_was_trained_on_the_images_is_told(
    exported_run: Path, models: list[Path], pictures: Path, tmp_path: Path
) -> None:
    lone = write_linear_model(tmp_path / "lone" / "lone.onnx", ["checks", "stripes"])
    result = of([lone, exported_run], exported_run.parent / "photos")
    assert result.notes == (f"64 of 80 images were trained on by {exported_run.name}, so its figures flatter",)
    with pytest.raises(OptionError, match="are for several models"):
        compare(CompareOptions(tuple(map(str, models)), pictures, CPU, VoteOptions("soft")))


def test_a_folder_of_runs_is_tabled_without_answering(exported_run: Path, in_empty_folder: Path) -> None:
    Path("runs").mkdir()
    Path("runs/good").symlink_to(exported_run)
    Path("runs/damaged").mkdir()
    Path("runs/damaged/manifest.json").write_text("{")
    result = compare(CompareOptions(("runs",)))
    assert isinstance(result, RunsResult)
    good, damaged = result.runs
    told = json.loads((exported_run / "metrics.json").read_text())
    assert (good.name, good.model, good.parameters) == ("good", "cnn", told["n_parameters"])
    assert good.validation_accuracy == told["validation_accuracy"]
    assert good.validation_loss == told["validation_loss"]
    assert "not JSON" in damaged.reason


def test_the_command_prints_one_line_for_each_and_leaves_a_page(
    models: list[Path], pictures: Path, in_empty_folder: Path
) -> None:
    command = ["compare", *map(str, models), "--data", str(pictures), "--device", "cpu"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert all(name in told.output for name in ("one.onnx", "two.onnx", "three.onnx", "(best)"))
    figures = json.loads(Path("comparison/report.json").read_text())
    assert [each["name"] for each in figures["models"]] == ["one.onnx", "two.onnx", "three.onnx"]
    assert "one.onnx" in Path("comparison/report.html").read_text()
    printed = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert printed["best"] == figures["best"]
