"""Networks in two: the front that runs once, and the rest that learns."""

from __future__ import annotations

import pytest
import torch

from edgecls.train.networks.cut import activation_bytes, cut_before_trained
from edgecls.train.networks.models import build
from edgecls.train.networks.stages import unfreeze
from edgecls.train.recipe_options import NetworkOptions

NETWORKS = [
    ("efficientnet_lite0", "last:4"),
    ("mobilenet_v2", "last:5"),
    ("mobilenet_v3_small", "last:3"),
    ("resnet18", "layer3"),
    ("squeezenet1_1", "last:3"),
    ("resnet9", "last:2"),
]


@pytest.mark.parametrize(("model", "which"), NETWORKS)
def test_both_parts_in_turn_are_the_whole(model: str, which: str) -> None:
    classifier, _ = build(NetworkOptions(model, "none", image_size=(64,)), 3)
    unfreeze(classifier, which)
    cut = cut_before_trained(classifier)
    assert cut is not None
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    classifier.eval()
    with torch.no_grad():
        activations = cut.front.features(pixels)
        assert torch.equal(cut.rest(activations), classifier.features(pixels))
    assert activation_bytes(cut, (64, 64)) == activations[0].nbytes
    trained = {id(p) for p in classifier.backbone.parameters() if p.requires_grad}
    assert trained <= {id(p) for p in cut.rest.parameters()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("which", ["all", "head"])
def test_a_network_without_a_frozen_front_or_without_a_trained_rest_is_not_cut(which: str) -> None:
    classifier, _ = build(NetworkOptions("resnet18", "none"), 3)
    unfreeze(classifier, which)
    assert cut_before_trained(classifier) is None


def test_a_network_that_the_tracer_cannot_follow_is_not_cut() -> None:
    classifier, _ = build(NetworkOptions("vit_b_32", "none"), 3)
    unfreeze(classifier, "last:1")
    cut = cut_before_trained(classifier)
    if cut is not None:  # should a later PyTorch follow it, it must still be the whole
        pixels = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
        with torch.no_grad():
            classifier.eval()
            assert torch.allclose(cut.rest(cut.front.features(pixels)), classifier.features(pixels), atol=1e-5)
