"""Folds, extension, distillation, transfer schedules, and what else one command trains."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edgecls import cli
from edgecls.datasets import read_split
from edgecls.errors import DatasetError, MissingExtra, OptionError, RunError, TrainingError
from edgecls.export.options import ExportOptions
from edgecls.export.run import export
from edgecls.labelled import stratified_folds
from edgecls.options import from_flat
from edgecls.runs import Run, find_run, members_of
from edgecls.runtime.options import PredictOptions
from edgecls.runtime.predict import predict
from edgecls.train.data import pixels
from edgecls.train.data.pixels import decode_images
from edgecls.train.fit import phases
from edgecls.train.kinds.folds import FoldsResult
from edgecls.train.kinds.result import TrainResult
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Epoch, Listener, Progress
from edgecls.train.run import resume, train
from tests.conftest import draw, rows_of, write_class_folders, write_image

QUICK = {"model": "cnn", "width": 4, "image_size": 16, "epochs": 2, "batch_size": 8, "device": "cpu"}


def options(data: Path, **changes: Any) -> TrainOptions:
    return from_flat(TrainOptions, {"data": str(data)} | QUICK | changes, "a test")


def trained(data: Path, listener: Listener = Listener(), **changes: Any) -> TrainResult:
    result = train(options(data, **changes), listener)
    assert isinstance(result, TrainResult)
    return result


def test_folds_end_in_a_table_of_accuracies_and_an_ensemble_that_predicts(in_empty_folder: Path, photos: Path) -> None:
    result = train(options(photos, folds=3, epochs=4, lr=0.05, out="crossed"))
    assert isinstance(result, FoldsResult)
    accuracies = [fold.validation_accuracy for fold in result.folds]
    assert result.mean == np.mean(accuracies)
    assert result.sd == np.std(accuracies, ddof=1)
    held_out = [
        {row["path"] for row in rows_of(fold.run / "split.csv") if row["split"] == "val"} for fold in result.folds
    ]
    assert set.union(*held_out) == {str(path) for path in photos.rglob("*.*") if path.is_file()}
    assert sum(map(len, held_out)) == 24
    assert members_of("crossed") == [Path("crossed") / f"fold-{n}" for n in (1, 2, 3)]
    assert [Path(member).resolve() for member in members_of("latest")] == [fold.run.resolve() for fold in result.folds]
    for fold in result.folds:
        export(ExportOptions(str(fold.run)))
    report = predict(PredictOptions((photos,), ("crossed",)))
    assert report.images == 24
    assert report.ensemble is not None
    assert [member.name for member in report.ensemble.members] == ["fold-1", "fold-2", "fold-3"]
    with pytest.raises(RunError, match=r"is an ensemble of 3 runs; name one of them, such as crossed/fold-1"):
        find_run("crossed")


def test_folds_that_were_finished_before_a_kill_are_not_trained_again(in_empty_folder: Path, photos: Path) -> None:
    whole = train(options(photos, folds=2, out="whole"))
    calls = 0

    def stop(epoch: Epoch) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError("killed")

    with pytest.raises(MemoryError):
        train(options(photos, folds=2, out="killed"), Listener(on_epoch=stop))
    epochs: list[Epoch] = []
    resumed = resume("killed", Listener(on_epoch=epochs.append))
    assert isinstance(whole, FoldsResult)
    assert isinstance(resumed, FoldsResult)
    assert len(epochs) <= 2
    assert [fold.validation_accuracy for fold in resumed.folds] == [fold.validation_accuracy for fold in whole.folds]


def test_a_fold_whose_first_image_is_broken_leaves_it_out(in_empty_folder: Path, photos: Path) -> None:
    (photos / "checks" / "0.png").write_bytes(b"broken")
    result = train(options(photos, folds=2, epochs=1))
    assert isinstance(result, FoldsResult)
    assert sum(fold.n_validation for fold in result.folds) == 23
    assert list(result.unreadable) == [str(photos / "checks" / "0.png")]


def test_ctrl_c_in_a_fold_ends_all_of_them_and_they_go_on_together(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = phases.fit

    def interrupt(*arguments: Any) -> None:
        fit(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phases, "fit", interrupt)
        with pytest.raises(TrainingError, match="interrupted in fold-1; go on with: edgecls train --resume crossed"):
            train(options(photos, folds=2, out="crossed"))
    resumed = resume("crossed")
    assert isinstance(resumed, FoldsResult)
    assert [fold.n_epochs for fold in resumed.folds] == [2, 2]


def test_a_class_with_fewer_images_than_folds_is_named(in_empty_folder: Path, photos: Path) -> None:
    for name in "ab":
        write_image(photos / "rare" / f"{name}.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"5 folds need 5 images of every class.*rare \(2\)"):
        train(options(photos, folds=5))


def test_a_class_with_one_image_cannot_be_split(in_empty_folder: Path, photos: Path) -> None:
    write_image(photos / "rare" / "a.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DatasetError, match="one image only in rare"):
        train(options(photos, folds=5))


def test_folds_are_stratified_and_repeat_with_their_seed(photos: Path) -> None:
    from edgecls.datasets import open_dataset

    images = open_dataset(photos).splits["train"]
    folds = stratified_folds(images, 3, 0)
    assert sorted(image.path for fold in folds for image in fold) == sorted(image.path for image in images)
    for label in ("checks", "stripes"):
        counts = [sum(image.label == label for image in fold) for fold in folds]
        assert max(counts) - min(counts) <= 1
    assert folds == stratified_folds(images, 3, 0)
    assert folds != stratified_folds(images, 3, 1)


def test_an_extended_model_keeps_its_old_rows_and_reports_old_and_new_apart(
    in_empty_folder: Path, photos: Path, tmp_path: Path
) -> None:
    first = trained(photos, epochs=6, lr=0.05, out="first")
    old = load_checkpoint(Run(first.run))
    more = tmp_path / "more"
    for seed in range(12):
        write_image(more / "plain" / f"{seed}.png", np.full((20, 24, 3), 20 * seed, np.uint8))
        write_image(more / "checks" / f"more-{seed}.png", draw("checks", seed + 900))
    result = trained(more, extend="first", out="more-classes", model="efficientnet_lite0", width=None, image_size=None)
    manifest = Run(result.run).manifest
    assert manifest.labels == ("checks", "stripes", "plain")
    assert manifest.model == "cnn"
    told = result.figures["extended"]
    split = read_split(result.run / "split.csv", manifest.labels)
    assert told["n_old"] + told["n_new"] == len(split.splits["val"])
    assert {image.label for image in split.splits["train"]} == set(manifest.labels)
    assert 0 <= told["old_after"] <= 1
    dataset = read_split(result.run / "split.csv", manifest.labels)
    pixels = decode_images(dataset.splits["val"], manifest.preprocessing).pixels
    truth = dataset.targets("val")
    before, after = (logits_of(each, pixels).argmax(1).numpy() for each in (old, load_checkpoint(Run(result.run))))
    assert told["old_before"] == np.mean(before[truth < 2] == truth[truth < 2])
    assert told["old_after"] == np.mean(after[truth < 2] == truth[truth < 2])
    assert told["new_after"] == np.mean(after[truth == 2] == 2)
    assert json.loads((result.run / "metrics.json").read_text())["extended"] == told


def test_the_head_of_an_extended_model_starts_with_the_old_rows(in_empty_folder: Path, photos: Path) -> None:
    old = load_checkpoint(Run(trained(photos, out="first").run))
    longer = load_checkpoint(Run(Path("first")))
    longer.lengthen_head(5)
    assert longer.n_classes == 5
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(longer(pixels)[:, :2], old(pixels), atol=1e-5)  # a wider product rounds differently
        assert longer(pixels).shape == (3, 5)


EXTENSIONS = [
    pytest.param({"extend": "nowhere"}, RunError, "no such run folder", id="no run"),
    pytest.param({"extend": "first"}, OptionError, "no class that it does not know already", id="nothing new"),
    pytest.param({"extend": "first", "model": "resnet9"}, OptionError, "leave out --model", id="another network"),
]


@pytest.mark.parametrize(("changes", "error", "message"), EXTENSIONS)
def test_what_cannot_be_extended_is_refused(
    in_empty_folder: Path, photos: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    trained(photos, epochs=1, out="first")
    network = {"model": "efficientnet_lite0", "width": None, "image_size": None}
    with pytest.raises(error, match=message):
        trained(photos, **(network | changes))


def test_a_student_learns_from_its_teacher_at_another_size(in_empty_folder: Path, photos: Path) -> None:
    teacher = trained(photos, epochs=8, lr=0.05, image_size=24, width=8, out="teacher")
    alone = trained(photos, epochs=1, out="alone")
    taught = trained(photos, epochs=1, teacher="teacher", teacher_weight=1.0, out="taught")
    assert teacher.n_parameters > taught.n_parameters
    one, other = (load_checkpoint(Run(result.run)).state_dict() for result in (alone, taught))
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert Run(taught.run).manifest.training["teacher"] == str(Path("teacher").absolute())


def test_a_teacher_of_other_classes_is_refused(in_empty_folder: Path, photos: Path, tmp_path: Path) -> None:
    trained(photos, epochs=1, out="teacher")
    (photos / "checks").rename(photos / "chequers")
    with pytest.raises(OptionError, match=r"--teacher .*teacher: it was trained on other classes.*checks"):
        trained(photos, teacher="teacher")


def test_a_teacher_who_would_never_be_asked_is_refused(in_empty_folder: Path, photos: Path) -> None:
    first = trained(
        photos, model="mobilenet_v3_small", width=None, image_size=32, weights="none", epochs=1, out="first"
    )
    weights = str(first.run / "checkpoint.pt")
    with pytest.raises(OptionError, match="all epochs frozen"):
        trained(
            photos, model="mobilenet_v3_small", width=None, image_size=32, weights=weights, freeze_epochs=2,
            teacher="first",
        )  # fmt: skip


def test_only_the_last_stages_are_trained_and_frozen_norms_keep_their_statistics(
    in_empty_folder: Path, photos: Path
) -> None:
    shape: dict[str, Any] = {"model": "mobilenet_v3_small", "width": None, "image_size": 32}
    first = trained(photos, **shape, weights="none", epochs=1, out="first")
    result = trained(photos, **shape, weights="first/checkpoint.pt", freeze_epochs=0, unfreeze="last:1", out="second")
    before, after = (load_checkpoint(Run(r.run)).backbone.state_dict() for r in (first, result))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert changed < {name.split(".")[1] for name in before}


def test_a_stage_that_the_network_does_not_have_is_refused_before_the_head_is_trained(
    in_empty_folder: Path, photos: Path
) -> None:
    trained(photos, out="first")
    before = sorted(Path().rglob("recipe.json"))
    epochs: list[Epoch] = []
    with pytest.raises(OptionError, match="--unfreeze layer9"):
        trained(
            photos, Listener(on_epoch=epochs.append), weights="first/checkpoint.pt", freeze_epochs=1, unfreeze="layer9"
        )
    assert not epochs
    assert sorted(Path().rglob("recipe.json")) == before  # no run folder is left


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"schedule": "onecycle", "clip": 1.0}, id="one cycle, clipped"),
        pytest.param({"optimizer": "adamw", "schedule": "step", "accumulate": 2}, id="adamw in steps, accumulated"),
        pytest.param({"ema": 0.9, "label_smoothing": 0.0, "balance": "weights"}, id="averaged, weighed"),
        pytest.param({"balance": "sampling", "cutmix": 1.0, "mixup": 0.2, "erase": 0.5}, id="sampled, mixed, erased"),
        pytest.param({"augment": ["trivial"], "warmup": 0.0}, id="trivial"),
        pytest.param({"model": "mlp", "hidden": [16, 8, 8], "width": None}, id="a perceptron"),
        pytest.param({"model": "linear", "width": None, "cache": "none"}, id="logistic regression, nothing cached"),
        pytest.param({"hidden": [12], "batch_norm": "none", "cache": "ram"}, id="fully connected, in memory"),
        pytest.param({"model": "airbench", "image_size": 32, "width": 8}, id="airbench"),
    ],
)
def test_every_part_of_the_recipe_trains(in_empty_folder: Path, photos: Path, changes: dict[str, Any]) -> None:
    epochs: list[Epoch] = []
    result = trained(photos, Listener(on_epoch=epochs.append), **changes)
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert all(math.isfinite(epoch.train_loss + epoch.val_loss) for epoch in epochs)
    assert load_checkpoint(Run(result.run)).n_classes == 2


def test_the_averaged_weights_are_the_ones_that_are_kept(in_empty_folder: Path, photos: Path) -> None:
    plain, averaged = (trained(photos, epochs=1, ema=ema, out=f"ema-{ema}") for ema in (0.0, 0.9))
    one, other = (load_checkpoint(Run(result.run)).state_dict() for result in (plain, averaged))
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_range_test_finds_a_rate_and_leaves_the_weights_alone(in_empty_folder: Path, photos: Path) -> None:
    lines: list[str] = []
    epochs: list[Epoch] = []
    trained(photos, Listener(lines.append, epochs.append), find_lr=True, epochs=3)
    (line,) = [line for line in lines if "by a range test" in line]
    rate = float(line.split(": ")[1].split(",")[0])
    assert 1e-5 < rate < 10
    assert max(epoch.lr for epoch in epochs) <= rate * 1.05


def test_out_of_memory_is_answered_with_smaller_batches_and_as_many_steps(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    fit = phases.fit

    def scarce(classifier: Any, batches: Any, phase: Any, *rest: Any) -> None:
        seen.append((batches[0].batch_size, phase.accumulate))
        if batches[0].batch_size > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        fit(classifier, batches, phase, *rest)

    monkeypatch.setattr(phases, "fit", scarce)
    lines: list[str] = []
    result = trained(photos, Listener(lines.append))
    assert seen == [(8, 1), (4, 2), (2, 4)]
    assert result.n_epochs == 2
    assert sum("out of memory at" in line for line in lines) == 2


def test_a_batch_of_two_that_is_too_much_ends_with_advice(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(phases, "fit", starved)
    with pytest.raises(TrainingError, match="out of memory at a batch of 2; use a smaller --image-size"):
        trained(photos)


def test_labels_that_disagree_between_train_and_test_are_named(in_empty_folder: Path, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "data" / "train", 6)
    write_class_folders(tmp_path / "data" / "test", 3)
    (tmp_path / "data" / "test" / "checks").rename(tmp_path / "data" / "test" / "cheques")
    with pytest.raises(DatasetError, match="the test split has classes that train does not know: cheques"):
        trained(tmp_path / "data")


def test_a_checkpoint_of_another_model_is_refused(in_empty_folder: Path, photos: Path) -> None:
    trained(photos, epochs=1, out="first")
    with pytest.raises(OptionError, match="not weights of resnet9"):
        trained(photos, model="resnet9", weights="first/checkpoint.pt")


def test_a_picture_that_vanishes_while_nothing_is_cached_ends_the_training(in_empty_folder: Path, photos: Path) -> None:
    def vanish(_epoch: Epoch) -> None:
        for path in (photos / "checks").iterdir():
            path.unlink()

    with pytest.raises(TrainingError, match="was readable when training began and no longer is"):
        trained(photos, Listener(on_epoch=vanish), cache="none")


def test_tensorboard_gets_the_figures_of_every_epoch(in_empty_folder: Path, photos: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = trained(photos, epochs=3)
    events = EventAccumulator(str(result.run / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_accuracy"):
        assert len(events.Scalars(name)) == 3
    history = rows_of(result.run / "history.csv")
    shown = [event.value for event in events.Scalars("val_accuracy")]
    assert shown == pytest.approx([float(row["val_accuracy"]) for row in history])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(f"edgecls.train.fit.loggers.{'MLFlowLogger' if name == 'mlflow' else 'WandbLogger'}", missing)
    with pytest.raises(MissingExtra, match=rf"--track {name} needs .*edgecls\[{name}\]"):
        trained(photos, track=[name])


def test_a_classifier_on_the_features_of_a_run_is_trained_by_the_command(in_empty_folder: Path, photos: Path) -> None:
    base = invoke("train", photos, "--model", "cnn", "--width", 4, "--image-size", 16, "--epochs", 1, "--out", "base")
    assert base.exit_code == 0, base.output
    told = invoke("train", photos, "--features", "base", "--classifier", "svm", "--out", "svm")
    assert told.exit_code == 0, told.output
    assert "svm in" in told.output
    assert Path("svm/figures/confusion_validation.png").is_file()
    assert Path("svm/head.onnx").is_file()
    assert Run(Path("svm")).manifest.training["classifier"] == "svm"
    exported = invoke("export", "svm", "--max-drop", 100, "--min-speedup", 0)
    assert exported.exit_code == 0, exported.output
    report = json.loads(invoke("predict", photos, "--model", "svm", "--json").stdout)
    assert report["images"] == 24
    assert report["accuracy"] is not None
    refused = invoke("train", photos, "--features", "resnet9", "--classifier", "svm")
    assert refused.exit_code == 1
    assert "it has no trained weights" in " ".join(refused.output.split())
    unknown = invoke("train", photos, "--features", "mobilnet_v2", "--classifier", "svm")
    assert "neither a run" in " ".join(unknown.output.split())


def invoke(*words: object) -> Any:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_the_table_of_the_folds_fits_a_terminal(in_empty_folder: Path, photos: Path) -> None:
    told = invoke("train", photos, "--model", "cnn", "--width", 4, "--image-size", 16, "--epochs", 1, "--folds", 3)
    assert told.exit_code == 0, told.output
    assert "mean ± sd" in told.output
    table = told.output[told.output.index("Cross-validation") :].splitlines()
    assert sum(line.strip()[:1].isdigit() for line in table) == 3
    assert max(map(len, table)) <= 80


def test_one_class_alone_can_be_added_to_a_trained_model(in_empty_folder: Path, photos: Path, tmp_path: Path) -> None:
    trained(photos, epochs=1, out="first")
    for seed in range(4):
        write_image(tmp_path / "more" / "plain" / f"{seed}.png", np.full((20, 24, 3), 60 * seed, np.uint8))
    result = trained(tmp_path / "more", extend="first", model="efficientnet_lite0", width=None, image_size=None)
    assert Run(result.run).manifest.labels == ("checks", "stripes", "plain")


def test_a_training_that_is_refused_leaves_no_folder(in_empty_folder: Path, photos: Path) -> None:
    trained(photos, epochs=1, out="first")
    network = {"model": "efficientnet_lite0", "width": None, "image_size": None}
    with pytest.raises(OptionError, match="no class that it does not know"):
        trained(photos, extend="first", out="second", **network)
    assert not Path("second").exists()


def test_logistic_regression_learns_at_its_own_rate(in_empty_folder: Path, photos: Path) -> None:
    epochs: list[Epoch] = []
    trained(photos, Listener(on_epoch=epochs.append), model="linear", width=None, epochs=8, image_size=32)
    assert epochs[-1].train_loss < epochs[0].train_loss < 3


def test_where_nothing_can_hold_the_pictures_they_are_decoded_in_every_epoch_and_the_user_hears_of_it(
    in_empty_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept_lines: list[str] = []
    kept = trained(photos, Listener(kept_lines.append), out="kept")
    monkeypatch.setattr(pixels, "free_memory", lambda: 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    lines: list[str] = []
    result = trained(photos, Listener(lines.append), out="anew")
    assert any("decoded anew in every epoch" in line for line in lines)
    assert not any("decoded anew" in line for line in kept_lines)
    assert result.validation_accuracy == kept.validation_accuracy
    lines.clear()
    train(options(photos, folds=2, epochs=1), Listener(lines.append))
    assert sum("decoded anew in every epoch" in line for line in lines) == 1


def test_the_geometry_that_was_asked_for_is_that_of_training_and_prediction(
    in_empty_folder: Path, photos: Path
) -> None:
    geometry = {"image_size": [16, 24], "resize": "pad", "crop": 0.9, "interpolation": "area"}
    result = trained(photos, **geometry, out="run")
    own = Run(result.run).manifest.preprocessing
    assert (own.size_hw, own.resize, own.crop_fraction, own.interpolation) == ((16, 24), "pad", 0.9, "area")
    with np.load("run/golden.npz") as golden:
        assert golden["images"].shape[1:] == (16, 24, 3)
    export(ExportOptions("run"))
    report = predict(PredictOptions((photos,), ("run",)))
    assert report.images == 24
    assert report.errors == 0


def test_the_pictures_that_the_network_sees_are_drawn_before_the_first_epoch(
    in_empty_folder: Path, photos: Path
) -> None:
    there: list[bool] = []
    trained(photos, Listener(on_epoch=lambda _: there.append(Path("run/figures/batch.png").is_file())), out="run")
    assert there == [True, True]


def test_progress_is_told_for_reading_features_and_epochs(in_empty_folder: Path, photos: Path) -> None:
    told: list[Progress] = []
    trained(
        photos, Listener(on_progress=told.append), model="efficientnet_lite0", width=None, image_size=32,
        freeze_epochs=1,
    )  # fmt: skip
    titles = [*dict.fromkeys(each.title for each in told)]
    expected = ["reading the pictures", "features of the frozen weights", "epoch 1 of 1, the head"]
    assert titles == [*expected, "epoch 2 of 2, all weights"]
    assert all(0 < each.done <= each.total for each in told)
    last = told[-1]
    assert last.done == last.total
    assert last.seconds_left == pytest.approx(0, abs=1e-6)


def test_the_monitored_figure_chooses_the_best_epoch(in_empty_folder: Path, photos: Path) -> None:
    for monitor, column, sign in (("f1", "val_f1", 1), ("loss", "val_loss", -1), ("accuracy", "val_accuracy", 1)):
        result = trained(photos, monitor=monitor, epochs=5, lr=0.05, out=monitor)
        scores = [sign * float(row[column]) for row in rows_of(Path(monitor) / "history.csv")]
        assert scores[result.best_epoch - 1] == max(scores)


def test_the_last_stages_learn_on_activations_that_are_computed_once(in_empty_folder: Path, photos: Path) -> None:
    shape: dict[str, Any] = {"model": "mobilenet_v3_small", "width": None, "image_size": 32, "freeze_epochs": 0}
    trained(photos, **{**shape, "freeze_epochs": None}, weights="none", epochs=1, out="first")
    lines: list[str] = []
    cached = trained(
        photos, Listener(lines.append), **shape, weights="first/checkpoint.pt", unfreeze="last:2", out="cached"
    )
    whole = trained(
        photos, **shape, weights="first/checkpoint.pt", unfreeze="last:2", augment=["none"], ema=1e-9, out="whole"
    )  # a moving average keeps the pictures whole
    assert any("are computed once" in line for line in lines)
    one, other = (load_checkpoint(Run(result.run)).state_dict() for result in (cached, whole))
    assert all(torch.allclose(one[name], other[name], atol=1e-3) for name in one if one[name].is_floating_point())
