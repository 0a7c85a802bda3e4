"""scikit-learn classifiers on the features of a trained network, from fitting to the exported file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch

from edgecls.errors import EdgeclsError, MissingExtra, OptionError, RunError, TrainingError
from edgecls.export.options import ExportOptions
from edgecls.export.run import export
from edgecls.golden import Golden
from edgecls.options import from_flat
from edgecls.runs import Run, find_run, members_of
from edgecls.runtime.classifier import Classifier
from edgecls.tables.train import trained
from edgecls.train.classical import settings as classical
from edgecls.train.classical.head import head_onnx, linear_head
from edgecls.train.classical.settings import Classical, Features, Targets, fit_classical
from edgecls.train.kinds.folds import FoldsResult
from edgecls.train.networks.checkpoint import load_checkpoint
from edgecls.train.networks.features import features_of
from edgecls.train.networks.models import build
from edgecls.train.networks.onnx_head import HEAD, OnnxHead
from edgecls.train.options import ClassicalName, TrainOptions
from edgecls.train.progress import Listener
from edgecls.train.recipe_options import NetworkOptions
from edgecls.train.run import train

NAMES: tuple[ClassicalName, ...] = get_args(ClassicalName)
N_FEATURES = 12


def blobs(n: int, n_classes: int, seed: int) -> tuple[Features, Targets]:
    """Clouds that overlap a little, so that answers differ in how sure they are."""
    centres = np.random.default_rng(0).normal(0, 2, (n_classes, N_FEATURES))
    rng, targets = np.random.default_rng(seed), np.arange(n) % n_classes
    return (centres[targets] + rng.normal(0, 1.5, (n, N_FEATURES))).astype(np.float32), targets.astype(np.int64)


def of_onnx(fitted: Classical, features: Features) -> OnnxHead:
    return OnnxHead(head_onnx(fitted, features), fitted.n_features, fitted.n_classes)


def needs(name: ClassicalName) -> None:
    if name == "xgboost":
        pytest.importorskip("xgboost")
        pytest.importorskip("onnxmltools")


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_onnx_head_answers_as_scikit_learn_on_features_that_it_has_not_seen(
    name: ClassicalName, n_classes: int
) -> None:
    needs(name)
    features, targets = blobs(120, n_classes, seed=1)
    unseen, truth = blobs(300, n_classes, seed=2)
    fitted = fit_classical(name, features, targets, n_classes, seed=0)
    head: torch.nn.Module = linear_head(fitted) if name == "logistic" else of_onnx(fitted, features)
    with torch.no_grad():
        logits = head(torch.from_numpy(unseen)).numpy()
    assert logits.shape == (300, n_classes)
    assert logits.dtype == np.float32
    assert np.array_equal(logits.argmax(1), fitted.answers(unseen))
    assert (logits.argmax(1) == truth).mean() > 0.8
    if name == "svm":
        assert np.allclose(logits, fitted.scores(unseen), atol=1e-3)
    else:
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert np.allclose(probabilities, fitted.scores(unseen), atol=1e-4)


def test_the_head_of_a_support_vector_machine_is_plain_onnx_that_tensorrt_reads() -> None:
    features, targets = blobs(60, 3, seed=1)
    model = head_onnx(fit_classical("svm", features, targets, 3, seed=0), features)
    assert {node.domain for node in model.graph.node} == {""}


def test_a_class_without_training_images_is_an_error() -> None:
    features, targets = blobs(40, 2, seed=1)
    with pytest.raises(TrainingError, match="1 of 3 classes have no training image, first number 2"):
        fit_classical("svm", features, targets, 3, seed=0)


def test_features_that_are_not_numbers_are_an_error() -> None:
    features, targets = blobs(40, 2, seed=1)
    features[3, 4] = np.nan
    with pytest.raises(TrainingError, match="not all finite"):
        fit_classical("logistic", features, targets, 2, seed=0)


def test_a_missing_xgboost_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "xgboost", None)
    features, targets = blobs(40, 2, seed=1)
    with pytest.raises(MissingExtra, match=r'--classifier xgboost.*pip install "edgecls\[xgboost\]"'):
        fit_classical("xgboost", features, targets, 2, seed=0)


def test_an_onnx_graph_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = blobs(60, 2, seed=1)
    fitted = fit_classical("svm", features, targets, 2, seed=0)
    scores = fitted.scores(features)
    monkeypatch.setattr(classical.Classical, "scores", lambda self, features: scores[:, ::-1])
    with pytest.raises(TrainingError, match="otherwise than scikit-learn"):
        head_onnx(fitted, features)


def test_features_of_many_pictures_are_those_of_the_network() -> None:
    network, _ = build(NetworkOptions("cnn", width=8), 2, (24, 24))
    pixels = torch.randint(0, 256, (100, 24, 24, 3), dtype=torch.uint8)
    network.train()
    got = features_of(network, pixels)
    assert network.training
    network.eval()
    with torch.no_grad():
        expected = network.features(pixels)
    assert (got.shape, got.dtype) == (expected.shape, torch.float32)
    assert torch.allclose(got, expected, atol=1e-4 * float(expected.abs().max()))
    assert features_of(network, pixels[:0]).shape == (0, expected.shape[1])


def train_classical_run(source: Path, data: Path, name: ClassicalName, out: Path) -> Run:
    options = {"data": str(data), "features": str(source), "classifier": name, "out": str(out), "device": "cpu"}
    train(from_flat(TrainOptions, options, "a test"))
    return find_run(out)


@pytest.fixture(scope="module")
def runs(exported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("classical")
    made: dict[str, Run] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in ("logistic", "svm", "random-forest"):
            made[name] = train_classical_run(exported_run, exported_run.parent / "photos", name, root / name)
    return made


EXPORTED = [
    pytest.param("logistic", {"fp32", "fp16", "int8", "int8-cpu"}, id="logistic is a layer"),
    pytest.param("svm", {"fp32", "fp16", "int8", "int8-cpu"}, id="svm is plain ONNX"),
    pytest.param("random-forest", {"fp32", "fp16", "int8-cpu"}, id="trees are nothing for TensorRT"),
]


@pytest.mark.parametrize(("name", "precisions"), EXPORTED)
def test_an_export_predicts_as_the_classifier(
    runs: dict[str, Run], photos: Path, tmp_path: Path, name: str, precisions: set[str]
) -> None:
    run = Run(Path(shutil.copytree(runs[name].folder, tmp_path / "run")))
    assert run.path(HEAD).exists() == (name != "logistic")
    result = export(ExportOptions(str(run.folder), int8=True))
    assert set(result.precisions) == precisions
    paths = sorted(photos.rglob("*.png"))
    from edgecls import images

    pixels = np.stack([images.load(path, run.manifest.preprocessing) for path in paths])
    with torch.inference_mode():
        expected = load_checkpoint(run)(torch.from_numpy(pixels)).argmax(1).tolist()
    with Classifier.open(run.folder, precision="fp32", device="cpu") as classifier:
        labels = [prediction.label for prediction in classifier.predict(paths)]
    assert [run.manifest.labels.index(label) for label in labels] == expected
    assert np.mean([path.parent.name == label for path, label in zip(paths, labels, strict=True)]) > 0.7
    for measured in result.precisions.values():
        assert measured.agreement is not None
        assert measured.agreement > 0.8
    graph = onnx.load(run.path("model.onnx"))
    assert [each.name for each in graph.graph.input] == ["images"]
    assert [each.name for each in graph.graph.output] == ["logits"]


def test_the_run_says_how_good_it_is_class_by_class(runs: dict[str, Run]) -> None:
    figures = json.loads(runs["svm"].path("metrics.json").read_text())
    assert 0.8 < figures["validation_accuracy"] <= 1
    assert len(Golden.of(runs["svm"]).validation_answers) == figures["n_validation"]


@pytest.fixture
def forest(runs: dict[str, Run], tmp_path: Path) -> Run:
    """A copy that a test may damage."""
    return Run(Path(shutil.copytree(runs["random-forest"].folder, tmp_path / "forest")))


def test_a_damaged_head_is_an_error(forest: Run) -> None:
    forest.path(HEAD).write_bytes(forest.path(HEAD).read_bytes()[:1000])
    with pytest.raises(RunError, match=HEAD):
        load_checkpoint(forest)


def test_a_missing_head_is_an_error_and_never_an_untrained_one(forest: Run) -> None:
    forest.path(HEAD).unlink()
    with pytest.raises(RunError, match="the head of this run is gone"):
        load_checkpoint(forest)


def test_the_head_of_another_network_is_an_error(forest: Run) -> None:
    features, targets = blobs(40, 2, seed=1)
    other = head_onnx(fit_classical("svm", features, targets, 2, seed=0), features)
    forest.path(HEAD).write_bytes(other.SerializeToString())
    with pytest.raises(RunError, match=f"expected features of .*{N_FEATURES}|it is the head of another run"):
        load_checkpoint(forest)


def test_an_engine_of_trees_is_refused_before_anything_is_replaced(
    forest: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgecls.export.run.check_target", lambda options: None)
    before = sorted(path.name for path in forest.folder.iterdir())
    with pytest.raises(OptionError, match="TensorRT cannot run the trees of random-forest"):
        export(ExportOptions(str(forest.folder), engine=True))
    assert sorted(path.name for path in forest.folder.iterdir()) == before


def test_features_of_an_unknown_run_are_an_error(photos: Path, in_empty_folder: Path) -> None:
    with pytest.raises(EdgeclsError, match="neither a run"):
        train_classical_run(Path("runs/nothing"), photos, "svm", in_empty_folder / "out")


def test_folds_of_a_classical_head_end_in_an_ensemble(photos: Path, in_empty_folder: Path) -> None:
    values = {
        "data": str(photos), "features": "efficientnet_lite0", "image_size": 64, "classifier": "svm", "folds": 3,
        "out": "crossed", "device": "cpu",
    }  # fmt: skip
    result = train(from_flat(TrainOptions, values, "a test"))
    assert isinstance(result, FoldsResult)
    assert [fold.n_validation for fold in result.folds] == [8, 8, 8]
    assert result.mean > 0.7
    assert members_of("crossed") == [Path("crossed") / f"fold-{n}" for n in (1, 2, 3)]
    for member in members_of("crossed"):
        assert Run(member).path(HEAD).is_file()
        assert load_checkpoint(Run(member))(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape == (1, 2)
    lines = trained(result)
    assert "best epoch" not in [column.header for column in lines.columns]


def test_folds_on_the_features_of_a_run_are_refused_since_it_knows_their_images(
    exported_run: Path, photos: Path, in_empty_folder: Path
) -> None:
    values = {"data": str(photos), "features": str(exported_run), "classifier": "svm", "folds": 3}
    with pytest.raises(OptionError, match="has learnt from images which the folds hold out"):
        train(from_flat(TrainOptions, values, "a test"))


def test_a_split_that_judges_by_what_the_features_were_learnt_from_is_told(
    runs: dict[str, Run], exported_run: Path, in_empty_folder: Path
) -> None:
    photos = exported_run.parent / "photos"
    said: dict[int, list[str]] = {0: [], 1: []}
    for seed, lines in said.items():
        values = {"data": str(photos), "features": str(exported_run), "classifier": "svm", "seed": seed}
        train(from_flat(TrainOptions, values, "a test"), Listener(lines.append))
    assert not any("learnt from" in line for line in said[0])
    assert any("val images are among those that" in line for line in said[1])
    assert all(f"weights: {exported_run}" in lines[0] for lines in said.values())
