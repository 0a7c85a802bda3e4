"""From a model and labelled images to figures, slices and a folder with a page; and what is said of bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact
from typer.testing import CliRunner

from edgecls.cli import app
from edgecls.datasets import read_split
from edgecls.errors import DatasetError, OptionError
from edgecls.evaluate.contestant import Contestant
from edgecls.evaluate.corruptions import CORRUPTIONS
from edgecls.evaluate.evaluate import evaluate
from edgecls.evaluate.gallery import RIGHT, WRONG
from edgecls.evaluate.occlusion import occlusion_of
from edgecls.evaluate.options import Condition, EvaluateOptions
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import ClassifierOptions, PredictOptions, RowsOptions, TtaOptions, VoteOptions
from edgecls.runtime.predict import predict
from tests.conftest import draw, rows_of, write_class_folders, write_image, write_linear_model

CPU = ClassifierOptions("fp32", "cpu")


def options(model: Path | str, data: Path | None = None, **changes: Any) -> EvaluateOptions:
    return EvaluateOptions(str(model), data, **{"classifier": CPU, **changes})


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_answers_are_those_of_predict(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    result = evaluate(options(exported_run, photos))
    predict(PredictOptions((photos,), (str(exported_run),), CPU, rows=RowsOptions(Path("rows.csv"))))
    rows = rows_of(Path("rows.csv"))
    right = sum(row["label"] == row["path"].split("/")[0] for row in rows)
    assert result.result.scores.accuracy.value == right / 24
    assert sorted(result.answers.confidence.tolist()) == pytest.approx(
        sorted(float(row["probability"]) for row in rows), abs=1e-4
    )


def test_views_and_votes_answer_as_they_do_in_predict(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    views = ClassifierOptions("fp32", "cpu", tta=TtaOptions(("flip",)))
    soft = VoteOptions("soft")
    other = exported_run
    result = evaluate(options(f"{exported_run}+{other}", photos, classifier=views, vote=soft))
    told = predict(
        PredictOptions((photos,), (str(exported_run), str(other)), views, soft, rows=RowsOptions(Path("rows.csv")))
    )
    assert result.result.scores.accuracy.value == told.accuracy
    assert result.result.n_views == 2


def test_without_data_a_run_is_measured_on_its_own_validation_images(exported_run: Path, in_empty_folder: Path) -> None:
    result = evaluate(options(exported_run)).result
    told = json.loads((exported_run / "metrics.json").read_text())
    assert result.scores.n == told["n_validation"]
    assert result.scores.accuracy.value == pytest.approx(told["validation_accuracy"])
    assert result.scores.log_loss.value == pytest.approx(told["validation_loss"], abs=0.2)  # a temperature is between
    assert "chosen by these very images" in result.notes[0]


def test_images_that_were_trained_on_are_said(exported_run: Path, in_empty_folder: Path) -> None:
    result = evaluate(options(exported_run, exported_run.parent / "photos")).result
    assert "64 of 80 images were trained on by" in result.notes[0]


def test_copies_of_images_that_were_trained_on_are_said(exported_run: Path, tmp_path: Path) -> None:
    split = read_split(exported_run / "split.csv", ["checks", "stripes"])
    known = [image.path for image in split.splits["train"] if image.label == "checks"]
    (tmp_path / "checks").mkdir()
    for number, file in enumerate(known[:3]):
        shutil.copy(file, tmp_path / "checks" / f"copy{number}.png")
    write_image(tmp_path / "stripes" / "new.png", draw("stripes", 9999))
    (note,) = evaluate(options(exported_run, tmp_path)).result.notes
    assert "3 of 4 images were trained on by" in note
    assert "3 of them as copies in other files" in note


@pytest.mark.parametrize("condition", ["accuracy<90", "f1<=1.5"])
def test_a_limit_that_no_share_can_reach_is_refused(exported_run: Path, photos: Path, condition: str) -> None:
    with pytest.raises(OptionError, match="is a share; expected a number from 0 to 1"):
        evaluate(options(exported_run, photos, fail_if=(condition,)))


def test_columns_of_a_csv_and_folders_are_slices(exported_run: Path, tmp_path: Path, in_empty_folder: Path) -> None:
    rows = []
    for index in range(40):
        kind = ("checks", "stripes")[index % 2]
        camera = "left" if index < 20 else "right"
        # the right camera gives pictures without anything on them
        picture = draw(kind, 500 + index) if camera == "left" else np.full((24, 24, 3), 40 + index, np.uint8)
        write_image(tmp_path / camera / f"{index}.png", picture)
        rows.append((f"{camera}/{index}.png", kind, camera, "" if index % 3 else "old"))
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "camera", "age"), *rows])
    slices = evaluate(options(exported_run, tmp_path / "data.csv")).result.slices
    found = {(each.by, each.value): each for each in slices}
    assert found["camera", "right"].is_worse
    assert not found["camera", "left"].is_worse
    assert found["folder", "right"].accuracy == found["camera", "right"].accuracy
    assert found["camera", "left"].n == 20
    right, wrong = (round(found["camera", side].accuracy.value * 20) for side in ("left", "right"))
    assert fisher_exact([[wrong, 20 - wrong], [right, 20 - right]], "less").pvalue < 0.05 / len(slices)
    assert ("age", "old") not in found  # one value is no slice: all others are empty
    thirds = [each.value.split()[0] for each in slices if each.by == "brightness"]
    assert thirds == sorted(thirds, reverse=True)  # up to, above and up to, above
    assert {each.by for each in slices} >= {"brightness", "probability of the answer"}


def test_pictures_are_shown_by_how_sure_the_answer_is(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    for index in range(3):  # stripes in the folder of checks
        write_image(photos / "checks" / f"wrong-{index}.png", draw("stripes", 900 + index))
    evaluated = evaluate(options(exported_run, photos))
    wrong, right = (evaluated.result.gallery[title] for title in (WRONG, RIGHT))
    assert {each.path.name for each in wrong} >= {f"wrong-{index}.png" for index in range(3)}
    assert [each.confidence for each in wrong] == sorted((each.confidence for each in wrong), reverse=True)
    assert all(each.is_right for each in right)
    shown = [each.path for pictures in evaluated.result.gallery.values() for each in pictures]
    assert len(shown) == len(set(shown))


def test_an_unreadable_picture_is_left_out_and_told(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    (photos / "checks" / "broken.png").write_bytes(b"no picture")
    result = evaluate(options(exported_run, photos)).result
    assert result.scores.n == 24
    assert list(result.unreadable) == [str(photos / "checks" / "broken.png")]


def test_covering_what_a_picture_is_about_costs_the_answer(tmp_path: Path, in_empty_folder: Path) -> None:
    model = write_linear_model(tmp_path / "model.onnx", "ab", size=8, scale=8.0)
    # only the top left corner differs from grey, so nothing else can matter
    picture = np.full((8, 8, 3), 128, np.uint8)
    picture[:2, :2] = draw("checks", 3, 2)
    path = write_image(tmp_path / "a" / "0.png", picture)
    with Classifier.open(model, device="cpu") as classifier:
        answer = next(iter(classifier.predict([path]))).label
        lost = occlusion_of(classifier, path, answer)
    assert lost.shape == (8, 8)
    # a cover elsewhere has the mean colour, which is nearly grey
    assert abs(lost[0, 0]) > 3 * np.abs(lost[4:, 4:]).max()


def test_damage_is_measured_at_three_strengths(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    result = evaluate(options(exported_run, photos, corruptions=True)).result
    assert len(result.robustness) == 1 + 3 * len(CORRUPTIONS)
    assert result.robustness[0].kept == 1
    by_kind = {(each.kind, each.strength): each.accuracy.value for each in result.robustness}
    assert by_kind["noise", "deviation of 40 of 255"] <= 1
    assert any(each.kept < 1 for each in result.robustness)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_damage_changes_a_picture_the_more_the_stronger_it_is(kind: str) -> None:
    picture = draw("checks", 1, 64)
    changes = []
    for damage in CORRUPTIONS[kind].values():
        damaged = damage(picture)
        assert (damaged.shape, damaged.dtype) == (picture.shape, np.uint8)
        changes.append(np.abs(damaged.astype(int) - picture).mean())
    assert 0 < changes[0] < changes[1] < changes[2] or kind == "rotation"  # a pattern meets itself when it is turned
    assert min(changes) > 0


# --- The command -----------------------------------------------------------------------------------------------


def test_the_command_leaves_a_page_its_figures_and_a_card(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    told = run("evaluate", exported_run, photos, "--device", "cpu", "--json", "--occlusion")
    assert told.exit_code == 0, told.output
    printed = json.loads(told.stdout)
    written = json.loads(Path("evaluation/report.json").read_text())
    assert written["scores"] == printed["scores"]
    assert printed["scores"]["accuracy"]["value"] > 0.9
    page = Path("evaluation/report.html").read_text()
    assert page.count("data:image/webp") >= 24
    assert sum(stage["share"] for stage in written["stages"].values()) == pytest.approx(1)
    card = Path("evaluation/card.md").read_text()
    assert card.startswith("---\n")
    assert f"| accuracy | {printed['scores']['accuracy']['value']:.4f} |" in card


def test_brackets_in_names_are_no_markup(tmp_path: Path, in_empty_folder: Path) -> None:
    for label in ("[red]", "[/b]"):
        write_image(tmp_path / "[i]data" / label.replace("/", "") / "0.png", draw("checks", 0, 8))
    model = write_linear_model(tmp_path / "model.onnx", ["[red]", "[b]"])
    told = run("evaluate", model, tmp_path / "[i]data", "--device", "cpu", "--out", "[u]out")
    assert told.exit_code == 0, told.output
    assert all(name in told.output for name in ("[red]", "[b]", "page: [u]out/report.html"))
    told = run("compare", model, f"{model}@tta=flip", "--data", tmp_path / "[i]data", "--device", "cpu")
    assert told.exit_code == 0, told.output


def test_a_condition_that_holds_fails_the_command(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    base = ("evaluate", exported_run, photos, "--device", "cpu", "--fail-if")
    assert run(*base, "accuracy<0.01", "--fail-if", "log-loss>99").exit_code == 0
    told = run(*base, "accuracy<=1")
    assert told.exit_code == 1
    assert "failed: accuracy<=1" in told.output
    assert Path("evaluation/report.html").exists()


@pytest.mark.parametrize("text", ["accuracy", "accuracy=1", "accurcy<0.9", "accuracy<x", "accuracy<.", "<0.9", ""])
def test_a_condition_is_a_figure_a_sign_and_a_number(text: str) -> None:
    with pytest.raises(OptionError, match="expected a figure, a sign and a number"):
        Condition.parse(text)


def test_bad_input_gets_a_clear_word(exported_run: Path, photos: Path, tmp_path: Path, in_empty_folder: Path) -> None:
    strange = write_class_folders(tmp_path / "strange", 2)
    (strange / "checks").rename(strange / "dots")
    with pytest.raises(DatasetError, match=r"1 of 2 class names are not the model's: dots"):
        evaluate(options(exported_run, strange))
    with pytest.raises(DatasetError, match="no such folder or CSV file"):
        evaluate(options(exported_run, tmp_path / "nowhere"))
    empty = tmp_path / "none"
    (empty / "checks").mkdir(parents=True)
    with pytest.raises(DatasetError, match="no images"):
        evaluate(options(exported_run, empty))
    one = tmp_path / "one"
    write_image(one / "checks" / "0.png", draw("checks", 0))
    assert evaluate(options(exported_run, one)).result.scores.n == 1  # one class, one image: all intervals are wide
    (one / "checks" / "0.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="none of 1 images can be read"):
        evaluate(options(exported_run, one))
    model = write_linear_model(tmp_path / "lone.onnx", "ab")
    with pytest.raises(DatasetError, match="does not say which images it was tested on"):
        evaluate(options(model))
    with pytest.raises(OptionError, match="there is no top5"):
        evaluate(options(exported_run, photos, fail_if=("top5<0.5",)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="is a file; expected a folder"):
        options(exported_run, photos, out=tmp_path / "file")
    with pytest.raises(OptionError, match="--subsets is for predict"):
        options(exported_run, photos, vote=VoteOptions(subsets=True))


def test_a_folder_that_cannot_be_written_is_told(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    Path("evaluation").mkdir()
    Path("evaluation/report.json").mkdir()  # whoever runs this, root too
    told = run("evaluate", exported_run, photos, "--device", "cpu")
    assert told.exit_code == 1
    assert "cannot write" in told.output
    assert not list(Path("evaluation").glob("*.html"))


# --- How a model is named --------------------------------------------------------------------------------------


def test_a_model_is_named_with_settings_and_several_vote(tmp_path: Path) -> None:
    found = Contestant.parse("a+b@precision=int8,tta=flip,shifts,vote=soft,batch-size=4", CPU, VoteOptions())
    assert found.models == ("a", "b")
    assert found.classifier == ClassifierOptions("int8", "cpu", 4, tta=TtaOptions(("flip", "shifts")))
    assert found.vote == VoteOptions("soft")
    plus = write_linear_model(tmp_path / "a+b@c.onnx", "ab")
    assert Contestant.parse(str(plus), CPU, VoteOptions()).models == (str(plus),)


def test_settings_hold_where_the_run_names_the_images(exported_run: Path, in_empty_folder: Path) -> None:
    result = evaluate(options(f"{exported_run}@precision=int8", classifier=ClassifierOptions())).result
    assert result.precision.startswith("int8")
    assert result.data == "the run's validation images"


def test_what_is_said_of_a_vote_needs_one(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    with pytest.raises(OptionError, match="are for several models"):
        evaluate(options(exported_run, photos, vote=VoteOptions("soft")))
    with pytest.raises(DatasetError, match="does not say which images it was tested on"):
        evaluate(options(f"{exported_run}+{exported_run}"))  # what validated one may have trained the other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a@colour=red", "no such setting: colour"),
        ("a+b@subsets=true", "no such setting: subsets"),
        ("a@flip", "'flip' is no setting"),
        ("@tta=flip", "no model in it"),
        ("a@precision=int9", "expected auto, fp32, fp16, int8"),
        ("a@batch-size=x", "batch_size is 'x'; expected int"),
        ("a@tta=flap", "--tta flap: expected views"),
    ],
)
def test_a_setting_that_there_is_not_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Contestant.parse(text, CPU, VoteOptions())
