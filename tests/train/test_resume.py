"""A training that was killed goes on to the same end; one that ended, or was changed, is not resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from edgecls import cli
from edgecls.errors import RunError, TrainingError
from edgecls.options import from_flat
from edgecls.runs import RECIPE, RESUME, find_run
from edgecls.train.fit import recorder
from edgecls.train.kinds.result import TrainResult
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener
from edgecls.train.run import resume, train
from tests.conftest import rows_of

QUICK = {"model": "cnn", "width": 4, "image_size": 16, "epochs": 6, "batch_size": 8, "device": "cpu", "patience": 0}


def options(photos: Path, **changes: Any) -> TrainOptions:
    return from_flat(TrainOptions, {"data": str(photos)} | QUICK | changes, "a test")


KILLED = """
import json, os, signal, sys
from edgecls.options import from_flat
from edgecls.train.options import TrainOptions
from edgecls.train.run import train
from edgecls.train.progress import Listener

def kill(epoch):
    if epoch.epoch == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

train(from_flat(TrainOptions, json.loads(sys.argv[1]), "a test"), Listener(on_epoch=kill))
"""


def train_until_killed(values: dict[str, Any], epoch: int) -> None:
    command = [sys.executable, "-c", KILLED, json.dumps(values), str(epoch)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


CASES = [
    pytest.param({"dropout": 0.3, "augment": ["light"], "mixup": 0.2, "ema": 0.9}, 3, id="from scratch"),
    pytest.param({"schedule": "plateau", "optimizer": "adam", "accumulate": 2}, 5, id="a plateau, in its last epoch"),
    pytest.param({"lookahead": 2, "accumulate": 2}, 3, id="slow weights"),
]


@pytest.mark.parametrize(("changes", "killed_in"), CASES)
def test_a_killed_training_ends_as_if_it_had_not_been(
    in_empty_folder: Path, photos: Path, changes: dict[str, Any], killed_in: int
) -> None:
    whole = train(options(photos, out="whole", **changes))
    train_until_killed({"data": str(photos), **QUICK, **changes, "out": "killed"}, killed_in)
    lines: list[str] = []
    resumed = resume("killed", Listener(lines.append))
    assert isinstance(whole, TrainResult)
    assert isinstance(resumed, TrainResult)
    assert any("going on after epoch" in line for line in lines)
    one, other = (torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    drop = {"seconds"}
    histories = [[{k: v for k, v in row.items() if k not in drop} for row in rows_of(Path(n) / "history.csv")]
                 for n in ("whole", "killed")]  # fmt: skip
    assert histories[0] == histories[1]
    assert not (Path("killed") / RESUME).exists()


def test_a_training_killed_between_its_phases_goes_on_with_the_second(in_empty_folder: Path, photos: Path) -> None:
    train(options(photos, model="mobilenet_v3_small", width=None, image_size=32, weights="none", epochs=1, out="first"))
    changes = {"model": "mobilenet_v3_small", "width": None, "image_size": 32, "weights": "first/checkpoint.pt"}
    changes |= {"freeze_epochs": 2, "epochs": 3}
    train(options(photos, out="whole", **changes))
    train_until_killed({"data": str(photos), **QUICK, **changes, "out": "killed"}, 2)
    resume("killed")
    one, other = (torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [row["phase"] for row in rows_of(Path("killed/history.csv"))] == ["head", "head", "all"]


def test_a_training_that_was_killed_before_its_first_epoch_ended_starts_again(
    in_empty_folder: Path, photos: Path
) -> None:
    whole = train(options(photos, out="whole"))
    values = {"data": str(photos), **QUICK, "out": "killed"}
    train_until_killed(values, 1)
    os.remove(Path("killed") / RESUME) if (Path("killed") / RESUME).exists() else None
    resumed = resume("killed")
    assert isinstance(whole, TrainResult)
    assert isinstance(resumed, TrainResult)
    assert resumed.validation_accuracy == whole.validation_accuracy


def test_a_training_that_still_runs_is_not_resumed_beside_itself(in_empty_folder: Path, photos: Path) -> None:
    refused: list[str] = []

    def resume_too(epoch: object) -> None:
        with pytest.raises(RunError, match="another process trains in this run folder") as raised:
            resume("run")
        refused.append(str(raised.value))

    train(options(photos, epochs=2, out="run"), Listener(on_epoch=resume_too))
    assert len(refused) == 2


def test_a_training_that_has_ended_is_not_resumed(in_empty_folder: Path, photos: Path) -> None:
    train(options(photos, epochs=1, out="done"))
    with pytest.raises(RunError, match=r"its training has ended; to train on, use --weights"):
        resume("done")


def test_images_that_went_away_stop_a_resumption(in_empty_folder: Path, photos: Path) -> None:
    train_until_killed({"data": str(photos), **QUICK, "out": "killed"}, 2)
    next((photos / "checks").iterdir()).unlink()
    with pytest.raises(RunError, match="no longer those that it was trained on"):
        resume("killed")


def test_a_damaged_resume_file_is_named(in_empty_folder: Path, photos: Path) -> None:
    train_until_killed({"data": str(photos), **QUICK, "out": "killed"}, 2)
    (Path("killed") / RESUME).write_bytes(b"not a checkpoint")
    with pytest.raises(RunError, match=r"resume.ckpt: cannot be resumed from"):
        resume("killed")


def test_a_folder_that_is_no_run_has_nothing_to_resume(in_empty_folder: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(RunError, match=f"no {RECIPE} in it"):
        resume("empty")


PRETRAINED = {"model": "efficientnet_lite0", "width": None, "image_size": 32, "epochs": 4, "freeze_epochs": 2}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"epochs": 2}, id="from scratch"),
        pytest.param(PRETRAINED, id="fine-tuned"),
        pytest.param({**PRETRAINED, "freeze_epochs": 4}, id="the head alone"),
        pytest.param({**PRETRAINED, "unfreeze": "last:2"}, id="the last stages, on activations"),
        pytest.param({**PRETRAINED, "epochs": None, "freeze_epochs": None, "minutes": 0.35}, id="planned into a time"),
        pytest.param(
            {**PRETRAINED, "epochs": None, "freeze_epochs": None, "minutes": 0.02},
            id="a time for no more than the head",
        ),
    ],
)
def test_the_recipe_of_a_run_trains_the_same_weights_again(
    in_empty_folder: Path, photos: Path, changes: dict[str, Any]
) -> None:
    values = changes if "minutes" not in changes else {**changes, "patience": 10}
    train(options(photos, out="first", **values))
    again = CliRunner().invoke(cli.app, ["train", "--options", "first/recipe.json", "--out", "again"])
    assert again.exit_code == 0, again.output
    one, other = (torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("first", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    recipes = [json.loads(Path(f"{name}/recipe.json").read_text()) for name in ("first", "again")]
    assert recipes[0]["options"] == recipes[1]["options"]
    assert {"versions", "device", "seconds"} <= set(recipes[0])
    assert find_run("first").manifest.training["versions"] == recipes[0]["versions"]


def test_a_full_disk_ends_the_training_with_a_message_and_the_best_checkpoint(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    save = recorder.save_checkpoint

    def full(classifier: Any, path: Path) -> None:
        if written:
            raise RunError(f"cannot write {path}: No space left on device; what was there before is unchanged")
        written.append(path)
        save(classifier, path)

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "save_checkpoint", full)
        with pytest.raises(RunError, match="No space left on device"):
            train(options(photos, epochs=30, lr=0.05, out="full"))
    resumed = resume("full")
    assert isinstance(resumed, TrainResult)
    assert resumed.n_epochs == 30
    assert find_run("full").manifest.labels == ("checks", "stripes")


def test_ctrl_c_before_the_first_epoch_says_how_to_start_again(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edgecls.train.fit.phases.fit", interrupt)
        with pytest.raises(TrainingError, match="edgecls train --resume stopped"):
            train(options(photos, out="stopped"))
    assert isinstance(resume("stopped"), TrainResult)


def test_ctrl_c_leaves_a_complete_run_and_the_exit_code_of_a_stopped_process(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = recorder.Recorder.add

    def stop_after_the_second(self: recorder.Recorder, epoch: recorder.Epoch, classifier: Any) -> None:
        if epoch.epoch == 3:
            raise KeyboardInterrupt
        add(self, epoch, classifier)

    command = ["train", str(photos), "--model", "cnn", "--width", "4", "--image-size", "16", "--epochs", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "add", stop_after_the_second)
        ended = CliRunner().invoke(cli.app, [*command, "--device", "cpu", "--out", "stopped"])
    assert ended.exit_code == cli.EXIT_INTERRUPTED, ended.output
    assert "go on with: edgecls train --resume stopped" in ended.output
    assert find_run("stopped").manifest.labels == ("checks", "stripes")
    resumed = resume("stopped")
    assert isinstance(resumed, TrainResult)
    assert resumed.n_epochs == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "interrupted before the first epoch ended; stopped holds no checkpoint. Start it again with: "),
        (["--folds", "2"], "interrupted before the first epoch ended; stopped/fold-1 holds no checkpoint. "),
    ],
)
def test_ctrl_c_before_there_is_a_result_exits_as_a_stopped_process(
    more: list[str], message: str, in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder.Recorder, "add", stop)
    command = ["train", str(photos), "--model", "cnn", "--width", "4", "--image-size", "16", "--epochs", "4"]
    ended = CliRunner().invoke(cli.app, [*command, "--device", "cpu", "--out", "stopped", *more])
    assert ended.exit_code == cli.EXIT_INTERRUPTED, ended.output
    assert message in ended.output
    assert "--resume stopped" in ended.output
    assert "error" not in ended.output


def test_ctrl_c_while_images_are_looked_for_exits_as_a_stopped_process(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgecls.train.preflight.open_dataset", stop)
    ended = CliRunner().invoke(cli.app, ["train", str(photos)])
    assert ended.exit_code == cli.EXIT_INTERRUPTED
    assert "stopped" in ended.output
