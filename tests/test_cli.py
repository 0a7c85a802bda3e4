"""The command line: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgecls import cli, demo
from edgecls.errors import RunError

runner = CliRunner()
EDGECLS = [sys.executable, "-m", "edgecls.cli"]


def invoke(*arguments: object) -> Any:
    return runner.invoke(cli.app, [str(argument) for argument in arguments])


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in cli.app.registered_commands:
        assert command.callback is not None
        assert f" {command.callback.__name__} " in result.output


def test_the_three_commands_run_as_they_stand(in_empty_folder: Path, photos: Path) -> None:
    photos.rename("data")
    trained = invoke("train", "--model", "cnn", "--image-size", 16, "--width", 4, "--epochs", 2, "--device", "cpu")
    assert trained.exit_code == 0, trained.output
    assert "validation accuracy" in trained.output
    # two epochs of a tiny network on 24 pictures: what INT8 loses and gains there is chance
    exported = invoke("export", "--int8", "--calibration-images", 8, "--max-drop", 100, "--min-speedup", 0)
    assert exported.exit_code == 0, exported.output
    assert "INT8 CPU" in exported.output
    verified = invoke("verify")
    assert verified.exit_code == 0, verified.output
    assert "model.int8-cpu.onnx" in verified.output
    predicted = invoke("predict", "data")
    assert predicted.exit_code == 0, predicted.output
    for words in ("accuracy", "img/s", "p50", "bottleneck", "predictions.csv"):
        assert words in predicted.output
    assert len(Path("predictions.csv").read_text().splitlines()) == 25


def test_json_is_one_object_on_standard_output(in_empty_folder: Path, photos: Path) -> None:
    trained = invoke("train", photos, "--model", "cnn", "--image-size", 16, "--width", 4, "--epochs", 1, "--json")
    assert {"run", "validation_accuracy", "seconds"} <= set(json.loads(trained.stdout))
    exported = json.loads(invoke("export", "--int8", "--calibration-images", 8, "--json").stdout)
    assert {"run", "verdict"} <= set(exported)
    for precision in ("fp32", "fp16", "int8", "int8-cpu"):
        assert {"accuracy", "agreement", "images_per_second", "bytes"} <= set(exported["precisions"][precision])
    report = json.loads(invoke("predict", photos, "--json").stdout)
    assert {"images", "errors", "accuracy", "images_per_second", "stages", "bottleneck"} <= set(report)


def test_rows_can_be_piped_and_the_table_goes_to_standard_error(exported_run: Path, photos: Path) -> None:
    result = invoke("predict", photos, "--model", exported_run, "--out", "-", "--top-k", 2)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "path,status,label,probability,reason,label_2,probability_2"
    assert len(lines) == 25
    assert "bottleneck" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr


def test_a_reader_that_leaves_early_gets_no_traceback(exported_run: Path, photos: Path) -> None:
    predict = " ".join([*EDGECLS, "predict", *[str(photos)] * 40, "--model", str(exported_run), "--out", "-"])
    result = subprocess.run(["bash", "-c", f"{predict} | head -n 1"], capture_output=True, text=True, check=False)
    assert result.stdout == "path,status,label,probability,reason\n"
    assert "Traceback" not in result.stderr


def test_error_rows_give_exit_code_3(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    (photos / "broken.jpg").write_text("text")
    result = invoke("predict", photos, "--model", exported_run)
    assert result.exit_code == 3
    assert "1 could not be read" in result.output
    strict = invoke("predict", photos, "--model", exported_run, "--strict")
    assert strict.exit_code == 1
    assert "error: broken.jpg: not an image" in strict.stderr


WRONG = [
    pytest.param(["train", "dta"], 1, "dta: no such folder or CSV", id="a mistyped data folder"),
    pytest.param(["train", "--model", "resnet9"], 1, "no such folder", id="no data folder"),
    pytest.param(["train", "--epochs", "0"], 1, "--epochs 0: expected 1 or more", id="no epochs"),
    pytest.param(["train", "--epochs", "many"], 2, "is not a valid int", id="epochs in words"),
    pytest.param(["train", "--device", "tpu"], 2, "tpu", id="an unknown device"),
    pytest.param(["train", "--modle", "cnn"], 2, "No such option", id="a mistyped flag"),
    pytest.param(["export", "runs/x"], 1, "no such run folder", id="a mistyped run"),
    pytest.param(["export"], 1, "edgecls train DATA", id="export before train"),
    pytest.param(["export", "--max-drop", "-1"], 1, "--max-drop -1.0: expected 0 to 100", id="a negative drop"),
    pytest.param(["export", "--min-speedup", "nan"], 1, "--min-speedup nan: expected 0", id="no speed"),
    pytest.param(["export", "--method", "magic"], 2, "magic", id="an unknown method"),
    pytest.param(["export", "--engine", "--batch", "8"], 1, "--batch 8", id="one batch size of three"),
    pytest.param(["engine", "runs/x"], 1, "no such run folder or model file", id="an engine of nothing"),
    pytest.param(["verify"], 1, "edgecls train DATA", id="verify before train"),
    pytest.param(["pretrained", "mobilnet_v2"], 1, "mobilenet_v2", id="a mistyped network"),
    pytest.param(["adopt", "x.onnx"], 1, "x.onnx: no such file", id="nothing to adopt"),
    pytest.param(["predict"], 1, "nothing to predict: name image files or folders", id="nothing to predict"),
    pytest.param(["predict", "--plan", "plan"], 1, "plan: no plan in it", id="predict before plan"),
    pytest.param(["predict", "--shard", "3", "x"], 1, "--plan, whose shards", id="a shard of nothing"),
    pytest.param(["merge", "plan"], 1, "plan: no plan in it", id="merge before plan"),
    pytest.param(["plan", "photoz"], 1, "photoz: no such folder", id="nothing to plan"),
    pytest.param(["predict", "photos"], 1, "edgecls train DATA", id="predict before train"),
    pytest.param(["predict", "photos", "--json", "--out", "-"], 1, "both want standard output", id="two outputs"),
    pytest.param(["predct"], 2, "No such command", id="a mistyped command"),
    pytest.param(["predict", "x", "--tta", "flop"], 1, "--tta flop: expected views out of flip", id="a mistyped view"),
    pytest.param(["predict", "x", "--vote", "loud"], 2, "loud", id="an unknown vote"),
    pytest.param(["predict", "x", "--device", "tpu"], 2, "tpu", id="an unknown device to predict on"),
    pytest.param(["predict", "x", "--out", "-", "--resume"], 1, "--resume: rows on standard", id="nothing to resume"),
    pytest.param(["predict", "x", "--min-confidence", "60"], 1, "from 0 to 1", id="per cent for a probability"),
    pytest.param(["predict", "x", "--frame-step", "0"], 1, "--frame-step 0", id="no frames"),
    pytest.param(["predict", "x", "--format", "xml"], 2, "xml", id="an unknown format"),
    pytest.param(["predict", "x", "--vote", "soft"], 1, "are for several models", id="a vote of one"),
    pytest.param(["predict", "x", "--tta-combine", "vote"], 1, "no views to combine", id="no views to combine"),
    pytest.param(["predict", "x", "--format", "csv", "--out", "a.jsonl"], 1, "leave one out", id="two formats"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "message"), WRONG)
def test_a_mistake_gets_a_message_and_no_traceback(
    in_empty_folder: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    result = invoke(*arguments)
    plain = re.sub(r"[\s│╭╮╰╯─]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", result.output))
    assert (result.exit_code, "Traceback" in plain) == (exit_code, False), plain
    assert message in plain


def test_the_version_is_printed() -> None:
    from edgecls import __version__

    assert invoke("--version").stdout == f"edgecls {__version__}\n"


def test_the_demo_goes_the_whole_way(in_empty_folder: Path) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/latest").symlink_to("mine")
    result = invoke("demo", "--json")
    assert result.exit_code == 0, result.output
    assert os.readlink("runs/latest") == "mine"
    report = json.loads(result.stdout)
    assert report["prediction"]["accuracy"] > 0.95
    assert report["prediction"]["precision"] == "int8-cpu"
    assert report["prediction"]["images"] == 450
    assert report["export"]["precisions"]["int8-cpu"]["agreement"] > 0.97


def test_a_killed_demo_may_be_run_again(in_empty_folder: Path) -> None:
    Path("demo/digits").mkdir(parents=True)
    for left_behind in ("predictions.csv", "predictions.csv.partial", "predictions.csv.partial.json", ".DS_Store"):
        Path("demo", left_behind).touch()
    demo._expect_free(Path("demo"))
    Path("demo/notes.txt").touch()
    with pytest.raises(RunError, match=r"has other files in it \(notes.txt\)"):
        demo._expect_free(Path("demo"))


def test_the_demo_leaves_other_folders_alone(in_empty_folder: Path) -> None:
    Path("photos/cats").mkdir(parents=True)
    Path("rows").mkdir()
    Path("rows/predictions.csv").write_text("mine")
    for folder in ("photos", "rows"):
        result = invoke("demo", "--out", folder)
        assert result.exit_code == 1
        assert "has other files in it" in " ".join(result.output.split())
    assert Path("rows/predictions.csv").read_text() == "mine"


def test_views_and_members_are_told_in_words(exported_run: Path, photos: Path, in_empty_folder: Path) -> None:
    viewed = invoke("predict", photos, "--model", exported_run, "--device", "cpu", "--tta", "flip,shifts")
    assert viewed.exit_code == 0, viewed.output
    assert "10 views" in viewed.output
    assert re.search(r"test-time augmentation is (not )?worth it", viewed.output)
    models = [part for name in ("model.onnx", "model.int8-cpu.onnx") for part in ("--model", exported_run / name)]
    voted = invoke("predict", photos, *models, "--device", "cpu", "--tie-break", exported_run / "model.onnx", "--json")
    assert voted.exit_code == 0, voted.output
    found = json.loads(voted.stdout)["ensemble"]
    assert [member["name"] for member in found["members"]] == ["model", "model.int8-cpu"]
    assert found["tie_break"] == "model"
    table = invoke("predict", photos, *models, "--device", "cpu", "--vote", "weighted", "--subsets")
    for words in ("Ensemble, vote: weighted", "alone", "accuracy-latency front"):
        assert words in table.output


REFUSED_EARLY = [
    pytest.param(["nowhere"], "no such folder or CSV", id="no data"),
    pytest.param(["photos", "--model", "mobilnet_v2"], "close: mobilenet_v2", id="a mistyped network"),
    pytest.param(["photos", "--model", "timm/mobilnetv4_conv_small"], "close: mobilenetv4_conv_small", id="of timm"),
    pytest.param(["photos", "--weights", "nothing.pt"], "--weights nothing.pt: no such file", id="no weights"),
    pytest.param(["labels.csv"], "path,label", id="a CSV without labels"),
    pytest.param(["one"], "one class only", id="one class"),
    pytest.param(["photos", "--momentum", "0.5"], "--momentum with adamw", id="momentum of adamw"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED_EARLY)
def test_what_can_be_known_without_torch_is_told_before_it_is_loaded(
    in_empty_folder: Path, photos: Path, words: list[str], message: str
) -> None:
    photos.rename("photos")
    Path("labels.csv").write_text("path,kind\na.jpg,b\n")
    shutil.copytree("photos/checks", "one/checks")
    code = f"""
import sys
from edgecls.cli import app
try:
    app(["train", *{words!r}])
except SystemExit as end:
    print("code", end.code, "torch" in sys.modules, "timm" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1] == "code 1 False False", ended.stderr
    assert message in " ".join(ended.stderr.split())


def test_a_val_fraction_beside_a_split_of_its_own_is_refused(in_empty_folder: Path, photos: Path) -> None:
    shutil.copytree(photos, "data/train")
    shutil.copytree(photos, "data/val")
    refused = invoke("train", "data", "--val-fraction", "0.3")
    assert refused.exit_code == 1
    assert "has a val split of its own" in refused.output
