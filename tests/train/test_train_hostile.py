"""Training on what others named, left lying about and filled up: told in a line, or none the worse for it."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edgecls import cli
from edgecls.datasets import read_split
from edgecls.errors import OptionError, RunError
from edgecls.options import from_flat
from edgecls.runs import FIGURES, RESUME, SPLIT, UNFINISHED, find_run
from edgecls.train.kinds.measure import macro_scores
from edgecls.train.kinds.result import TrainResult, is_complete
from edgecls.train.kinds.start import check_size
from edgecls.train.networks.checkpoint import save_checkpoint, write_tensors
from edgecls.train.networks.models import build
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Epoch, Listener
from edgecls.train.recipe_options import NetworkOptions
from edgecls.train.run import resume, train
from tests.conftest import draw, write_class_folders, write_image

QUICK = {"model": "linear", "image_size": 8, "epochs": 2, "batch_size": 8, "augment": ["none"], "device": "cpu"}


def options(data: Path, **changes: Any) -> TrainOptions:
    return from_flat(TrainOptions, {"data": str(data)} | QUICK | changes, "a test")


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Class folders with a space at an end, in two Unicode forms, and in them what is no picture."""
    root = write_class_folders(tmp_path / os.fsdecode(b"h\xe4sslich"), 4, size=8)
    (root / "checks").rename(root / "K\xe4se ")
    for index in range(4):
        write_image(root / "Ka\u0308se" / f"{index}.png", draw("checks", 50 + index, 8))
    shutil.copy(root / "stripes" / "1.png", root / "stripes" / os.fsdecode(b"caf\xe9.png"))
    (root / "stripes" / os.fsdecode(b"b\xe9.jpg")).write_text("no picture")
    os.mkfifo(root / "stripes" / "pipe.jpg")
    (root / "stripes" / "zero.jpg").symlink_to("/dev/zero")
    (root / "stripes" / "loop").symlink_to("loop")
    return root


def test_hostile_folders_are_trained_and_every_later_reader_knows_the_labels(
    in_empty_folder: Path, hostile: Path
) -> None:
    lines: list[str] = []
    result = train(options(hostile, out="run"), Listener(lines.append))
    assert isinstance(result, TrainResult)
    assert find_run("run").manifest.labels == ("K\xe4se", "stripes")
    assert {Path(path).name for path in result.unreadable} == {"b\udce9.jpg", "pipe.jpg", "zero.jpg"}
    told = [line for line in lines if line.startswith("warning: ")]
    assert any("stripes/loop is left out: this folder cannot be walked" in line for line in told)
    assert any("they are one class" in line for line in told)
    split = read_split(find_run("run").path(SPLIT), ("K\xe4se", "stripes"))
    assert sum(map(len, split.splits.values())) == 13
    exported = invoke("export", "run")
    assert exported.exit_code == 0, exported.output
    on_features = invoke("train", hostile, "--features", "run", "--classifier", "logistic", "--out", "svm")
    assert on_features.exit_code == 0, on_features.output
    assert "of the 2 val images" not in on_features.output
    rows = invoke("predict", hostile, "--model", "run", "--device", "cpu", "--json")
    assert '"labelled": 13' in rows.stdout


def test_a_class_that_can_be_no_label_is_refused_before_torch_is_loaded(in_empty_folder: Path, photos: Path) -> None:
    (photos / "checks").rename(photos / os.fsdecode(b"caf\xe9"))
    refused = invoke("train", photos, "--out", "run")
    assert refused.exit_code == 1
    assert r"caf\udce9': the name is not UTF-8" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not Path("run").exists()


def test_the_means_over_classes_leave_out_a_class_without_images(in_empty_folder: Path, tmp_path: Path) -> None:
    truth, answers = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
    assert macro_scores(answers, truth) == pytest.approx((1.0, 0.75, (1 + 2 / 3) / 2))
    data = write_class_folders(tmp_path / "data" / "train", 4, size=8)
    for index in range(4):
        write_image(data / "black" / f"{index}.png", np.zeros((8, 8, 3), np.uint8))
        write_image(data.parent / "val" / "black" / f"{index}.png", np.zeros((8, 8, 3), np.uint8))
    result = train(options(data.parent, epochs=60, lr=0.05, patience=0))
    assert isinstance(result, TrainResult)
    assert result.validation_accuracy == 1.0
    assert [result.figures[f"validation_{name}"] for name in ("precision", "recall", "f1")] == [1.0, 1.0, 1.0]


SMALL = [
    pytest.param("squeezenet1_1", (16,), "--image-size 16: too small for squeezenet1_1 .* 17 px or more", id="square"),
    pytest.param("squeezenet1_1", (64, 16), "--image-size 64,16: too small .* 17 px or more", id="one side"),
    pytest.param("googlenet", (12,), "--image-size 12: too small for googlenet .* 15 px or more", id="googlenet"),
    pytest.param("vit_b_16", (96,), "--image-size 96: vit_b_16 cannot take images of 96 x 96", id="one size alone"),
]


@pytest.mark.parametrize(("model", "size", "message"), SMALL)
def test_a_size_that_the_network_cannot_take_is_told_by_trying(model: str, size: tuple[int, ...], message: str) -> None:
    network = NetworkOptions(model, "none", size)
    classifier, preprocessing = build(network, 2)
    with pytest.raises(OptionError, match=message):
        check_size(classifier, preprocessing.size_hw, model)


def test_too_small_a_size_is_one_line_and_leaves_no_run(in_empty_folder: Path, photos: Path) -> None:
    refused = invoke(
        "train", photos, "--model", "squeezenet1_1", "--weights", "none", "--image-size", "16", "--out", "run"
    )
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: --image-size 16: too small for squeezenet1_1")
    assert not Path("run").exists()


@pytest.mark.parametrize("strategy", ["foo", "deepspeed", "single_xla"])
def test_a_strategy_that_lightning_refuses_is_told_before_anything_is_made(
    in_empty_folder: Path, photos: Path, strategy: str
) -> None:
    with pytest.raises(OptionError, match=f"--strategy {strategy}: Lightning refuses it"):
        train(options(photos, strategy=strategy, out="run"))
    assert not Path("run").exists()


def test_folds_say_that_the_validation_split_of_the_data_is_dealt_out(in_empty_folder: Path, photos: Path) -> None:
    shutil.copytree(photos, "data/train")
    write_class_folders(Path("data/val"), 2, first_seed=900)
    lines: list[str] = []
    train(options(Path("data"), folds=2, epochs=1), Listener(lines.append))
    assert sum("the 4 images of the data's own val split are dealt out" in line for line in lines) == 1


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Files grow no longer than this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_is_told_by_whatever_writes(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"before")
    with largest_file(10_000):
        with pytest.raises(RunError, match=r"cannot write .*a\.pt: File too large; what was there before is unchanged"):
            write_tensors({"a": torch.zeros(100_000)}, tmp_path / "a.pt")
        with pytest.raises(RunError, match="File too large"):
            save_checkpoint(build(NetworkOptions("linear", image_size=(64,)), 2)[0], tmp_path / "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == b"before"


def test_a_training_on_a_full_disk_goes_on_when_there_is_room(in_empty_folder: Path, photos: Path) -> None:
    # the page of pictures takes 60 kB, the checkpoint 150, and what it is resumed from twice as much
    wide = {"model": "cnn", "width": 24, "image_size": 16, "augment": None}
    values = {name: value for name, value in (QUICK | wide).items() if value is not None}
    full = from_flat(TrainOptions, {"data": str(photos), **values, "out": "run"}, "a test")
    with largest_file(220_000), pytest.raises(RunError, match=r"resume\.ckpt: File too large.*go on with: edgecls"):
        train(full)
    resumed = resume("run")
    assert isinstance(resumed, TrainResult)
    assert resumed.n_epochs == 2
    assert is_complete(find_run("run"))


class Killed(BaseException):
    """As by kill -9: nothing in the way catches it."""


def test_figures_that_were_being_drawn_when_the_training_was_killed_are_drawn_at_resume(
    in_empty_folder: Path, photos: Path
) -> None:
    def kill(_run: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(options(photos, out="run"), Listener(on_measured=kill))
    assert not is_complete(find_run("run"))
    epochs: list[Epoch] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecls.tables.train.epoch_line", lambda epoch: epochs.append(epoch) or "")
        resumed = invoke("train", "--resume", "run")
    assert resumed.exit_code == 0, resumed.output
    assert not epochs  # they had all been trained
    names = {path.name for path in (Path("run") / FIGURES).iterdir()}
    assert {"learning_curves.png", "confusion_validation.png"} <= names
    assert is_complete(find_run("run"))
    assert not (Path("run") / RESUME).exists()
    assert not (Path("run") / UNFINISHED).exists()
    assert {f"{FIGURES}/{name}" for name in names} <= set(find_run("run").manifest.files)
