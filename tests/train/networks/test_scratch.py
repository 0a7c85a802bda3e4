"""Networks from scratch: their sizes, what they compute, and those that the pixels do not suffice for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgecls.errors import OptionError
from edgecls.export.onnx import onnx_from_checkpoint
from edgecls.manifest import Manifest
from edgecls.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from edgecls.runtime.backends.protocol import BackendOptions
from edgecls.train.networks.models import build
from edgecls.train.networks.scratch import Airbench, PlainCnn
from edgecls.train.recipe_options import SCRATCH, NetworkOptions

# counts that course reports publish for their networks; the settings were found by solving for them
REPORTED = [
    pytest.param(
        NetworkOptions("cnn", width=32, blocks=4, convs=1, batch_norm="none", hidden=(1024,)), 224, 9, 51_778_889,
        id="four blocks without batch norm",
    ),
    pytest.param(
        NetworkOptions("cnn", width=32, blocks=3, convs=2, batch_norm="block", hidden=(1024,)), 224, 9, 103_058_153,
        id="three blocks of two with one batch norm each",
    ),
    pytest.param(
        NetworkOptions(
            "cnn", channels=(32, 32), convs=1, padding="none", last_pool="none", batch_norm="none", hidden=(128,)
        ), 32, 10, 703_786, id="two convolutions and a pooling between",
    ),
    pytest.param(
        NetworkOptions("cnn", channels=(16, 32, 64, 128, 256), convs=1, last_pool="none", batch_norm="block"),
        32, 10, 403_850, id="five convolutions and four poolings between",
    ),
    pytest.param(NetworkOptions("mlp", hidden=(200, 100, 50)), 64, 10, 2_484_160, id="a perceptron"),
    pytest.param(
        NetworkOptions("cnn", channels=(20, 64), convs=1, padding="none", hidden=(100, 50), batch_norm="block"),
        64, 10, 1_272_372, id="20 and 64 channels and two layers",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "size", "n_classes", "n_parameters"), REPORTED)
def test_the_networks_of_published_reports_can_be_built(
    options: NetworkOptions, size: int, n_classes: int, n_parameters: int
) -> None:
    with torch.device("meta"):
        classifier, _ = build(options, n_classes, (size, size))
        assert classifier.eval()(torch.zeros(1, size, size, 3, dtype=torch.uint8)).shape == (1, n_classes)
    assert sum(p.numel() for p in classifier.parameters() if p.requires_grad) == n_parameters


def test_the_default_cnn_keeps_the_names_of_older_checkpoints() -> None:
    names = list(PlainCnn((8, 8), (4,)).state_dict())
    assert names[:2] == ["layers.0.0.weight", "layers.0.1.weight"]
    assert {name.rsplit(".", 1)[0] for name in names} == {"layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"}


def test_linear_gives_the_head_the_pixels() -> None:
    classifier, _ = build(NetworkOptions("linear"), 4, (8, 12))
    pixels = torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8)
    expected = (pixels.permute(0, 3, 1, 2) - classifier.mean) / classifier.std
    assert torch.equal(classifier.features(pixels), expected.flatten(1))
    assert sum(p.numel() for p in classifier.parameters()) == 3 * 8 * 12 * 4 + 4


def test_dropout_is_once_before_every_layer_that_is_told_to_drop() -> None:
    def rates(options: NetworkOptions) -> tuple[list[float], float]:
        classifier, _ = build(options, 2, (32, 32))
        return [m.p for m in classifier.backbone.modules() if isinstance(m, nn.Dropout)], classifier.head_dropout.p

    assert rates(NetworkOptions("mlp")) == ([0.2, 0.2, 0.2], 0)
    assert rates(NetworkOptions("cnn")) == ([], 0.2)
    assert rates(NetworkOptions("cnn", dropout=0.4, hidden=(8, 4))) == ([0.4, 0.4], 0)
    assert rates(NetworkOptions("resnet9")) == ([], 0)
    assert rates(NetworkOptions("resnet9", dropout=0.3)) == ([], 0.3)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (NetworkOptions("cnn", blocks=5), 16, "--blocks 4"),
        (NetworkOptions("cnn", channels=(4, 4, 4, 4), padding="none"), 32, "fewer --channels"),
        (NetworkOptions("cnn", padding="none", convs=8), 16, "larger --image-size"),
        (NetworkOptions("airbench"), 8, "needs 9 px"),
        (NetworkOptions("linear", hidden=(8,)), 8, "use --model mlp"),
    ],
)
def test_a_network_that_cannot_be_is_an_error_that_says_what_can(
    options: NetworkOptions, size: int, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        build(options, 2, (size, size))


def test_as_many_blocks_as_the_error_says_do_fit() -> None:
    classifier, _ = build(NetworkOptions("cnn", blocks=4), 2, (16, 16))
    assert classifier.eval()(torch.zeros(1, 16, 16, 3, dtype=torch.uint8)).shape == (1, 2)


def test_a_scratch_network_without_a_size_asks_for_one() -> None:
    with pytest.raises(OptionError, match="give --image-size"):
        build(NetworkOptions("cnn"), 2)
    _, preprocessing = build(NetworkOptions("cnn", image_size=(16,)), 2)
    assert preprocessing.size_hw == (16, 16)


def test_airbench_has_the_parameters_of_the_published_network() -> None:
    network = Airbench(64)
    # whitening 24 * 12 + 24, six 3x3 convolutions, and a bias for each channel of their norms
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 312 + convolutions + 2 * (64 + 256 + 256)


@pytest.mark.parametrize("size", [9, 32, 50])
def test_airbench_takes_other_sizes_than_32_px(size: int) -> None:
    assert Airbench(8)(torch.zeros(2, 3, size, size)).shape == (2, 32)


def test_whitening_filters_make_patches_uncorrelated_with_unit_variance() -> None:
    torch.manual_seed(0)
    network = Airbench(8)
    smooth = nn.functional.avg_pool2d(torch.randn(50, 3, 20, 20), 3, 1) * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    network.initialise_whitening(smooth, epsilon=0)
    weight = network.whiten.weight
    answers = nn.functional.conv2d(smooth, weight).transpose(0, 1).flatten(1)
    assert torch.allclose(answers[:12] @ answers[:12].T / answers.shape[1], torch.eye(12), atol=1e-3)
    assert torch.equal(weight[12:], -weight[:12])
    assert not weight.requires_grad
    assert network.whiten.bias is not None
    assert network.whiten.bias.requires_grad


def test_the_first_filters_of_airbench_pass_their_channel_on() -> None:
    conv = Airbench(8).block2.conv1
    images = torch.randn(1, 8, 5, 5)
    assert torch.equal(conv(images)[:, :8], images)


@pytest.mark.parametrize("name", SCRATCH)
def test_every_scratch_network_answers_the_same_as_onnx(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    hidden = (8,) if name != "linear" else None
    classifier, preprocessing = build(NetworkOptions(name, width=4, hidden=hidden), 3, (16, 20))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 20, 3), dtype=np.uint8)
    with torch.inference_mode():
        classifier(torch.from_numpy(pixels))  # lets batch norm see data
        expected = classifier.eval()(torch.from_numpy(pixels)).numpy()
    onnx_from_checkpoint(classifier, Manifest(("a", "b", "c"), preprocessing, name), tmp_path / "model.onnx")
    with OnnxRuntimeBackend(tmp_path / "model.onnx", BackendOptions("cpu")) as backend:
        assert np.allclose(backend.infer(pixels), expected, atol=1e-4)
