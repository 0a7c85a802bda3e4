"""From labelled photos to a run folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecls.datasets import read_split
from edgecls.errors import OptionError, RunError, TrainingError
from edgecls.evaluate.training_plots import draw_training
from edgecls.options import from_flat
from edgecls.runs import Run, find_run, sha256_of
from edgecls.train import machine
from edgecls.train.data.pixels import decode_images
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of
from edgecls.train.networks.models import build
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Epoch, Listener
from edgecls.train.recipe_options import NONE, NetworkOptions
from edgecls.train.run import train
from tests.conftest import rows_of, write_class_folders, write_image


def quick(data: Path, **changes: Any) -> TrainOptions:
    options: dict[str, Any] = {
        "model": "cnn",
        "width": 4,
        "image_size": 16,
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
    }
    return from_flat(TrainOptions, {"data": str(data)} | options | changes, "a test")


def test_a_run_holds_all_that_later_steps_need(in_empty_folder: Path, photos: Path) -> None:
    lines: list[str] = []
    epochs: list[Epoch] = []
    result = train(quick(photos), Listener(lines.append, epochs.append, on_measured=draw_training))
    run = Run(result.run)
    files = sorted(path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file())
    assert any(file.startswith("tensorboard/events") for file in files)
    assert [file for file in files if not file.startswith("tensorboard/")] == [
        "checkpoint.pt",
        "figures/batch.png",
        "figures/confusion_validation.png",
        "figures/learning_curves.png",
        "golden.npz",
        "history.csv",
        "manifest.json",
        "metrics.json",
        "recipe.json",
        "split.csv",
    ]
    assert find_run("latest").folder == run.folder.resolve()
    manifest = run.manifest
    assert manifest.labels == ("checks", "stripes")
    assert manifest.training["seed"] == 0
    assert manifest.training["n_images"] == {"train": 20, "val": 4, "test": 0}
    assert {name: sha256_of(run.path(name)) for name in manifest.files} == manifest.files
    assert len(epochs) == len(rows_of(run.path("history.csv"))) == 2
    assert "2 classes, 20 train, 4 val images; cnn at 16 x 16 px" in lines[0]
    assert json.loads(run.path("metrics.json").read_text())["validation_accuracy"] == result.validation_accuracy
    assert run.manifest.metrics["parameters"] == result.n_parameters > 0


def test_the_tiny_network_learns(exported_run: Path) -> None:
    assert Run(exported_run).manifest.metrics["validation_accuracy"] > 0.9


def test_the_golden_answers_are_the_checkpoints(exported_run: Path) -> None:
    run = Run(exported_run)
    with np.load(run.path("golden.npz")) as golden:
        expected = logits_of(load_checkpoint(run), torch.from_numpy(golden["images"])).numpy()
        assert np.allclose(golden["logits"], expected, atol=1e-5)
        assert golden["images"].shape == (16, 24, 24, 3)
        assert len(golden["validation_answers"]) == 16


def test_the_best_checkpoint_is_kept_and_measured(in_empty_folder: Path, photos: Path) -> None:
    epochs: list[Epoch] = []
    result = train(quick(photos, epochs=6, lr=0.1), Listener(on_epoch=epochs.append))
    best = max(epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
    assert result.best_epoch == best.epoch
    run = Run(result.run)
    dataset = read_split(run.path("split.csv"), run.manifest.labels)
    pixels = decode_images(dataset.splits["val"], run.manifest.preprocessing).pixels
    answers = logits_of(load_checkpoint(run), pixels).argmax(1).numpy()
    assert result.validation_accuracy == np.mean(answers == dataset.targets("val"))


def test_the_same_seed_gives_the_same_weights(in_empty_folder: Path, photos: Path) -> None:
    one, again, other = (
        load_checkpoint(Run(train(quick(photos, seed=seed, out=name)).run)).state_dict()
        for seed, name in ((1, "a"), (1, "b"), (2, "c"))
    )
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_frozen_backbone_stays_as_it_was(in_empty_folder: Path, photos: Path) -> None:
    first = train(
        quick(photos, model="mobilenet_v3_small", width=None, image_size=32, weights="none", epochs=1, out="first")
    )
    weights = str(first.run / "checkpoint.pt")
    frozen = quick(
        photos, model="mobilenet_v3_small", width=None, image_size=32, weights=weights, epochs=2, freeze_epochs=2
    )
    before, after = (load_checkpoint(Run(r.run)) for r in (first, train(frozen)))
    for name, value in before.backbone.state_dict().items():
        assert torch.equal(value, after.backbone.state_dict()[name]), name
    assert not torch.equal(before.head.weight, after.head.weight)


def test_after_the_head_all_weights_are_tuned_at_a_twentieth_of_its_rate(in_empty_folder: Path, photos: Path) -> None:
    first = train(
        quick(photos, model="mobilenet_v3_small", width=None, image_size=32, weights="none", epochs=1, out="first")
    )
    epochs: list[Epoch] = []
    options = quick(
        photos, model="mobilenet_v3_small", width=None, image_size=32, weights=str(first.run / "checkpoint.pt"),
        epochs=3, freeze_epochs=2, lr=0.01,
    )  # fmt: skip
    train(options, Listener(on_epoch=epochs.append))
    assert [epoch.phase for epoch in epochs] == ["head", "head", "all"]
    assert max(epoch.lr for epoch in epochs if epoch.phase == "all") <= 0.0005


def test_unreadable_images_are_left_out_and_listed(in_empty_folder: Path, photos: Path) -> None:
    (photos / "checks" / "broken.jpg").write_text("not a picture")
    result = train(quick(photos))
    assert list(result.unreadable) == [str(photos / "checks" / "broken.jpg")]
    rows = rows_of(result.run / "split.csv")
    (broken,) = [row for row in rows if row["status"] == "error"]
    assert "not an image" in broken["reason"]
    assert result.n_train + result.n_validation == 24


def test_the_test_split_is_measured_at_the_end(in_empty_folder: Path, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data" / "train", 10)
    write_class_folders(tmp_path / "data" / "test", 5, first_seed=500)
    result = train(quick(tmp_path / "data"))
    assert result.n_test == 10
    assert result.test_accuracy is not None
    assert 0 <= result.test_accuracy <= 1


def test_a_run_that_diverges_stops_with_advice(in_empty_folder: Path, photos: Path) -> None:
    first = train(quick(photos, epochs=1, out="first"))
    state = torch.load(first.run / "checkpoint.pt", weights_only=True)
    state["backbone.layers.0.0.weight"] *= 1e38  # what a rate that is far too high leaves behind
    torch.save(state, "exploded.pt")
    with pytest.raises(TrainingError, match=r"diverged: the loss is nan after epoch 1. Use a lower --lr"):
        train(quick(photos, weights="exploded.pt", freeze_epochs=0, norm_statistics="learn"))


def test_training_stops_early_when_validation_no_longer_improves(in_empty_folder: Path, photos: Path) -> None:
    result = train(quick(photos, epochs=40, patience=2, lr=0.001))
    assert result.n_epochs < 40


def test_one_image_too_many_for_the_batches_does_not_stop_batch_norm(in_empty_folder: Path, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data" / "train", 5)
    write_image(tmp_path / "data" / "train" / "checks" / "more.png", np.zeros((20, 20, 3), np.uint8))
    write_class_folders(tmp_path / "data" / "val", 2)
    assert train(quick(tmp_path / "data", batch_size=10)).n_train == 11


def test_an_output_folder_with_something_in_it_is_not_overwritten(in_empty_folder: Path, photos: Path) -> None:
    (in_empty_folder / "mine").mkdir()
    (in_empty_folder / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty"):
        train(quick(photos, out="mine"))
    assert (in_empty_folder / "mine" / "thesis.txt").read_text() == "years of work"


INTERRUPTED = """
import signal, sys
from edgecls.options import from_flat
from edgecls.train.options import TrainOptions
from edgecls.train.run import train
from edgecls.train.progress import Listener

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored

def stop(epoch):
    if epoch.epoch == 2:
        signal.raise_signal(signal.SIGINT)

options = {"data": sys.argv[1], "model": "cnn", "width": 4, "image_size": 16, "epochs": 50, "batch_size": 8}
print("epochs:", train(from_flat(TrainOptions, options, "a test"), Listener(print, stop)).n_epochs)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("Ctrl-C works again")
"""


def test_an_interrupted_training_keeps_its_best_epoch(in_empty_folder: Path, photos: Path) -> None:
    # in a process of its own, as in a terminal: in one that had run all other tests, with every engine loaded, the
    # signal ended in a segmentation fault of which no library left a trace
    command = [sys.executable, "-c", INTERRUPTED, str(photos)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "interrupted: the best epoch so far" in ended.stdout
    assert "epochs: 2\n" in ended.stdout
    assert "Ctrl-C works again" in ended.stdout
    assert load_checkpoint(find_run("latest")).head.out_features == 2


BAD_OPTIONS = [
    pytest.param({"epochs": 0}, "--epochs 0", id="no epochs"),
    pytest.param(
        {"freeze_epochs": 3, "model": "mobilenet_v2"}, "--freeze-epochs 3: expected 0 to", id="freezing too long"
    ),
    pytest.param({"freeze_epochs": 1}, "would freeze random weights", id="freezing random weights"),
    pytest.param({"image_size": 4}, "--image-size 4", id="too small"),
    pytest.param({"batch_size": 1}, "--batch-size 1", id="a batch of one"),
    pytest.param({"lr": -1.0}, "--lr", id="a negative rate"),
    pytest.param({"val_fraction": 1.0}, "--val-fraction", id="all for validation"),
    pytest.param({"seed": -1}, "--seed -1", id="a negative seed"),
    pytest.param({"patience": -1}, "--patience -1", id="a negative patience"),
    pytest.param(
        {"model": "mobilenet_v2", "width": 8},
        "--width shapes cnn, resnet9, airbench, not --model mobilenet_v2; leave it out",
        id="an option of another network",
    ),
    pytest.param({"model": "resnet9", "batch_norm": "none"}, "--batch-norm shapes cnn, mlp", id="a norm that it has"),
    pytest.param({"augment": 3}, "augment is 3; expected a list of str", id="an augmentation that is no list"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_OPTIONS)
def test_contradictory_options_are_worded_with_the_flag(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        quick(Path("data"), **changes)


def test_a_cpu_trains_depthwise_networks_in_fp32_and_others_in_bf16_where_it_has_amx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    depthwise, plain = (
        build(NetworkOptions(name, NONE, image_size=(32,)), 2)[0] for name in ("mobilenet_v2", "resnet9")
    )
    for has_amx, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(machine, "cpu_features", lambda answer=has_amx: ("amx_bf16",) if answer else ())
        assert machine.lightning_precision(depthwise, "cpu", "auto") == "32-true"
        assert machine.lightning_precision(plain, "cpu", "auto") == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_network_trained_on_a_gpu_answers_alike_on_the_cpu(in_empty_folder: Path, photos: Path) -> None:
    run = Run(train(quick(photos, device="cuda")).run)
    classifier = load_checkpoint(run)
    with np.load(run.path("golden.npz")) as golden:
        pixels = torch.from_numpy(golden["images"])
    cpu, gpu = logits_of(classifier, pixels), logits_of(classifier.cuda(), pixels)
    assert torch.allclose(cpu, gpu, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_gpu_trains_on_the_batches_of_a_cpu(in_empty_folder: Path, photos: Path) -> None:
    changes = {"precision": "fp32", "augment": ["none"], "dropout": 0.0, "epochs": 1, "balance": "sampling"}
    one, other = (train(quick(photos, device=device, out=device, **changes)) for device in ("cpu", "cuda"))
    losses = [float(rows_of(result.run / "history.csv")[0]["train_loss"]) for result in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
