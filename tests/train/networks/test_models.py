"""Models by name, their weights, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import nn

from edgecls import images
from edgecls.errors import OptionError, RunError, TrainingError
from edgecls.manifest import Manifest, Preprocessing
from edgecls.options import flat
from edgecls.runs import CHECKPOINT, Run
from edgecls.train.networks import models
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of, save_checkpoint
from edgecls.train.networks.efficientnet_lite import LITE, EfficientNetLite, SamePadConv2d, load_imagenet_weights
from edgecls.train.networks.models import PixelClassifier, build
from edgecls.train.recipe_options import NetworkOptions

LITE0_PIXELS = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

SKLEARN_PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
PHOTOS = [
    pytest.param(SKLEARN_PHOTOS / "flower.jpg", 985, 1, id="a flower is a daisy"),
    pytest.param(SKLEARN_PHOTOS / "china.jpg", 698, 1, id="the Summer Palace is a palace"),
    pytest.param(
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
        652,
        4,
        id="Rear Admiral Hopper in uniform",
    ),
]


@pytest.mark.parametrize(("photo", "imagenet_class", "rank"), PHOTOS)
def test_efficientnet_lite0_classifies_real_photos_offline(photo: Path, imagenet_class: int, rank: int) -> None:
    network = EfficientNetLite(LITE["efficientnet_lite0"]).eval()
    load_imagenet_weights(network, "efficientnet_lite0")
    pixels = torch.from_numpy(images.load(photo, LITE0_PIXELS))[None].permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        logits = network((pixels - 127) / 128)
    assert imagenet_class in logits.topk(rank).indices[0]


def test_the_built_classifier_has_the_backbone_and_the_scaling_of_the_published_network() -> None:
    classifier, preprocessing = build(NetworkOptions("efficientnet_lite0", "imagenet"), 3)
    assert preprocessing == LITE0_PIXELS
    network = EfficientNetLite(LITE["efficientnet_lite0"])
    load_imagenet_weights(network, "efficientnet_lite0")
    network._fc = nn.Identity()  # type: ignore[assignment]
    pixels = torch.from_numpy(images.load(SKLEARN_PHOTOS / "flower.jpg", preprocessing))[None]
    with torch.inference_mode():
        expected = network.eval()((pixels.permute(0, 3, 1, 2).float() - 127) / 128)
        got = classifier.eval().features(pixels)
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("size", [7, 8, 112, 113])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_same_padding_gives_tensorflows_output_size(size: int, kernel: int, stride: int) -> None:
    output = SamePadConv2d(1, 1, kernel, stride)(torch.zeros(1, 1, size, size))
    assert output.shape[2:] == (-(-size // stride),) * 2


def test_same_padding_puts_the_odd_pixel_right_and_below() -> None:
    convolution = SamePadConv2d(1, 1, 3, 2, bias=False)
    nn.init.ones_(convolution.weight)
    output = convolution(torch.arange(16.0).view(1, 1, 4, 4))
    assert output[0, 0].tolist() == [[45, 39], [66, 50]]  # top left sees 3 x 3 pixels, bottom right 2 x 2


FAMILIES = [
    ("mobilenet_v2", 2_223_872 + 3 * 1281),
    ("mobilenet_v3_small", 1_517_856 + 3 * 1025),
    ("mobilenet_v3_large", 4_202_032 + 3 * 1281),
    ("efficientnet_b0", 4_007_548 + 3 * 1281),
    ("squeezenet1_1", 722_496 + 3 * 513),
    ("googlenet", 5_599_904 + 3 * 1025),
    ("densenet121", 6_953_856 + 3 * 1025),
    ("shufflenet_v2_x0_5", 341_792 + 3 * 1025),
    ("efficientnet_lite0", 3_371_008 + 3 * 1281),
    ("timm/mobilenetv4_conv_small", 2_493_024 + 3 * 1281),
]


@pytest.mark.parametrize(("name", "n_parameters"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_a_family_is_built_by_name_with_a_new_head(name: str, n_parameters: int) -> None:
    classifier, preprocessing = build(NetworkOptions(name, "none"), 3)
    batch = torch.zeros(2, *preprocessing.size_hw, 3, dtype=torch.uint8)
    with torch.inference_mode():
        assert classifier.eval()(batch).shape == (2, 3)
        assert classifier.train()(batch).shape == (2, 3)  # no auxiliary outputs while training either
    assert sum(p.numel() for p in classifier.parameters()) == n_parameters


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn", 8),
        ("cnn", 32),
        ("cnn", 100),
        ("resnet9", 32),
        ("resnet9", 64),
        ("linear", 8),
        ("mlp", 8),
        ("airbench", 9),
    ],
)
def test_scratch_networks_take_the_size_that_is_asked_for(name: str, size: int) -> None:
    classifier, preprocessing = build(NetworkOptions(name), 5, (size, size))
    assert preprocessing.size_hw == (size, size)
    assert preprocessing.crop_fraction == 1
    assert classifier(torch.zeros(2, size, size, 3, dtype=torch.uint8)).shape == (2, 5)


def test_the_weights_own_preprocessing_travels_with_them() -> None:
    _, preprocessing = build(NetworkOptions("mobilenet_v2", "none"), 2)
    assert preprocessing == Preprocessing((224, 224), crop_fraction=224 / 232)
    assert preprocessing.covered_hw == (232, 232)


def test_a_mistyped_model_is_an_error_that_names_close_ones() -> None:
    with pytest.raises(OptionError, match=r"no such model \(close: .*mobilenet_v2"):
        build(NetworkOptions("mobilnet_v2", "none"), 2)
    with pytest.raises(OptionError, match="timm has no 'mobilnetv4_conv_small'; close: mobilenetv4_conv_small"):
        build(NetworkOptions("timm/mobilnetv4_conv_small", "none"), 2)


def test_imagenet_weights_of_a_scratch_network_do_not_exist() -> None:
    with pytest.raises(OptionError, match="there are none for cnn"):
        NetworkOptions("cnn", "imagenet")


def test_without_a_network_the_download_error_says_what_works_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(models.torchvision.models, "get_model", unreachable)
    with pytest.raises(TrainingError, match=r"could not be downloaded.*--model efficientnet_lite0"):
        build(NetworkOptions("mobilenet_v2", "imagenet"), 2)


def test_a_hub_that_cannot_be_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub
    import timm

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    asked: list[bool] = []
    monkeypatch.setattr(models.socket, "create_connection", unreachable)
    create = timm.create_model

    def record(*words: object, **named: object) -> object:
        asked.append(hub.HF_HUB_OFFLINE)
        return create(*words, **named)

    monkeypatch.setattr(timm, "create_model", record)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TrainingError, match=r"could not be downloaded"):
        build(NetworkOptions("timm/mobilenetv4_conv_small", "imagenet"), 2)
    assert asked == [True]
    assert not hub.HF_HUB_OFFLINE


def weights_of(classifier: PixelClassifier) -> torch.Tensor:
    return torch.cat([p.flatten() for p in classifier.backbone.parameters()])


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "squeezenet1_1", "efficientnet_lite0", "timm/mobilenetv4_conv_small"]
)
def test_a_checkpoint_of_other_classes_gives_its_backbone(name: str, tmp_path: Path) -> None:
    trained, _ = build(NetworkOptions(name, "none"), 7)
    torch.save(trained.state_dict(), tmp_path / "checkpoint.pt")
    classifier, _ = build(NetworkOptions(name, str(tmp_path / "checkpoint.pt")), 2)
    assert torch.equal(weights_of(classifier), weights_of(trained))
    assert classifier.n_classes == classifier.last_linear.out_features == 2


def test_a_state_dict_of_the_whole_network_loads_whatever_its_classes(tmp_path: Path) -> None:
    published = models.torchvision.models.mobilenet_v3_small(num_classes=11)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    classifier, _ = build(NetworkOptions("mobilenet_v3_small", str(tmp_path / "published.pth")), 2)
    expected = published.features[0][0].weight
    assert torch.equal(classifier.backbone.features[0][0].weight, expected)  # type: ignore[index, union-attr]


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_a_weights_file_with_code_in_it_is_refused_and_not_run(in_empty_folder: Path) -> None:
    Path("evil.pt").write_bytes(pickle.dumps({"weight": _Code()}))
    with pytest.raises(OptionError, match="not a state dict of tensors only"):
        build(NetworkOptions("mobilenet_v3_small", "evil.pt"), 2)
    assert not Path("executed").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(OptionError, match="not weights of mobilenet_v3_small"):
        build(NetworkOptions("mobilenet_v3_small", str(tmp_path / "other.pt")), 2)


def test_a_weights_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OptionError, match="expected imagenet, none, or a file"):
        build(NetworkOptions("mobilenet_v3_small", "imagnet"), 2)


def test_pixels_are_scaled_inside_the_network() -> None:
    classifier, preprocessing = build(NetworkOptions("cnn"), 2, (8, 8))
    seen: list[torch.Tensor] = []
    classifier.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    classifier(torch.from_numpy(pixels))
    expected = (pixels / 255 - preprocessing.mean) / preprocessing.std
    assert np.allclose(seen[0].permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


PARAMETERS = [
    ("mobilenet_v2", 2_235_401),
    ("densenet121", 6_963_081),
    ("resnet50", 23_526_473),
    ("vgg16", 134_297_417),
]


@pytest.mark.parametrize(("name", "n_parameters"), PARAMETERS, ids=[name for name, _ in PARAMETERS])
def test_a_family_has_the_parameters_that_are_reported_for_nine_classes(name: str, n_parameters: int) -> None:
    with torch.device("meta"):
        classifier, _ = build(NetworkOptions(name, "none"), 9)
    assert sum(p.numel() for p in classifier.parameters()) == n_parameters


def test_hidden_widths_are_fully_connected_layers_in_the_head() -> None:
    classifier, _ = build(NetworkOptions("mobilenet_v3_small", "none", hidden=(32, 16), dropout=0.4), 5)
    assert [type(layer).__name__ for layer in classifier.head.children()] == [
        *["Linear", "ReLU", "Dropout"] * 2,
        "Linear",
    ]
    assert classifier.last_linear.weight.shape == (5, 16)
    assert classifier.n_classes == 5
    assert {m.p for m in (classifier.head_dropout, *classifier.head.modules()) if isinstance(m, nn.Dropout)} == {0.4}


def test_a_plain_head_keeps_the_names_of_older_checkpoints() -> None:
    classifier, _ = build(NetworkOptions("resnet9", dropout=0.4), 2, (16, 16))
    names = [name for name in classifier.state_dict() if not name.startswith("backbone.")]
    assert names == ["mean", "std", "head.weight", "head.bias"]


RECORDED = [
    pytest.param(NetworkOptions("cnn", width=4), {"width": 4}, id="an older manifest says only the width"),
    pytest.param(
        NetworkOptions("cnn", channels=(4, 8), convs=1, padding="none", batch_norm="block", hidden=(8,)), None, id="cnn"
    ),
    pytest.param(NetworkOptions("mlp", hidden=(8, 4)), None, id="mlp"),
    pytest.param(NetworkOptions("resnet9", width=2, hidden=(8,), dropout=0.3), None, id="a head of two layers"),
]


@pytest.mark.parametrize(("options", "recorded"), RECORDED)
def test_a_checkpoint_is_rebuilt_from_the_manifest(
    options: NetworkOptions, recorded: dict[str, object] | None, tmp_path: Path
) -> None:
    classifier, preprocessing = build(options, 2, (16, 16))
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    training = {**flat(options), "epochs": 3} if recorded is None else recorded
    run = Run(tmp_path)
    run.record(Manifest(("a", "b"), preprocessing, options.model, training=training))
    save_checkpoint(classifier, run.path(CHECKPOINT))
    assert torch.allclose(logits_of(load_checkpoint(Run(tmp_path)), pixels), logits_of(classifier, pixels), atol=1e-5)


def test_a_manifest_of_no_network_is_an_error_of_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.record(Manifest(("a", "b"), Preprocessing((16, 16)), "cnn", training={"width": "wide"}))
    torch.save({}, run.path(CHECKPOINT))
    with pytest.raises(RunError, match="width is 'wide'"):
        load_checkpoint(Run(tmp_path))
