"""Networks in stages: every parameter is in one, and they are frozen and slowed by name and by number."""

from __future__ import annotations

import pytest
import torch

from edgecls.errors import OptionError
from edgecls.train.networks.models import PixelClassifier, build
from edgecls.train.networks.scratch import Airbench
from edgecls.train.networks.stages import learning_rate_scales, set_training_mode, stages, unfreeze
from edgecls.train.recipe_options import SCRATCH, NetworkOptions

FAMILIES = [
    ("linear", 0, []),
    ("mlp", 3, ["layers.0", "layers.8"]),
    ("cnn", 6, ["layers.0", "layers.7"]),
    ("resnet9", 6, ["prepare", "residual3"]),
    ("airbench", 4, ["whiten", "block3"]),
    ("efficientnet_lite0", 18, ["_conv_stem", "_blocks.0", "_conv_head"]),
    ("vgg16", 15, ["features.0", "features.28", "classifier.0", "classifier.3"]),
    ("alexnet", 7, ["features.0", "classifier.4"]),
    ("googlenet", 12, ["conv1", "inception3a", "inception5b"]),
    ("resnet18", 5, ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    ("resnet50", 5, ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    ("densenet121", 8, ["features.conv0", "features.denseblock1", "features.transition3", "features.denseblock4"]),
    ("mobilenet_v2", 19, ["features.0", "features.18"]),
    ("mobilenet_v3_small", 14, ["features.0", "features.12", "classifier"]),
    ("efficientnet_b0", 9, ["features.0", "features.8"]),
    ("squeezenet1_1", 9, ["features.0", "features.12"]),
    ("vit_b_16", 13, ["conv_proj", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11"]),
    ("timm/mobilenetv4_conv_small", 7, ["conv_stem", "blocks.0", "blocks.4", "conv_head"]),
]


def built(name: str) -> PixelClassifier:
    if name.startswith("timm/"):  # asks a blank image for the number of features, which has no answer on meta
        return build(NetworkOptions(name, "none"), 9)[0]
    with torch.device("meta"):
        return build(NetworkOptions(name, "none"), 9, (32, 32) if name in SCRATCH else None)[0]


def trained(classifier: PixelClassifier) -> list[str]:
    return [stage.name for stage in stages(classifier) if not stage.is_frozen]


@pytest.mark.parametrize(("name", "n_stages", "some"), FAMILIES, ids=[name for name, *_ in FAMILIES])
def test_every_parameter_of_a_family_is_in_exactly_one_stage(name: str, n_stages: int, some: list[str]) -> None:
    classifier = built(name)
    row = stages(classifier)
    held = [id(parameter) for stage in row for parameter in stage.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in classifier.parameters())
    names = [stage.name for stage in row]
    assert [each for each in names if each in some] == some  # and in this order
    assert names[-1] == "head"
    assert len(names) == len(set(names)) == n_stages + 1


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("all", ["conv1", "layer1", "layer2", "layer3", "layer4", "head"]),
        ("last:1", ["layer4", "head"]),
        ("last:5", ["conv1", "layer1", "layer2", "layer3", "layer4", "head"]),
        ("layer3", ["layer3", "layer4", "head"]),
        ("head", ["head"]),
    ],
)
def test_stages_are_unfrozen_by_number_and_by_name(which: str, expected: list[str]) -> None:
    classifier = built("resnet18")
    unfreeze(classifier, "head")
    unfreeze(classifier, which)
    assert trained(classifier) == expected


def test_the_beginning_of_names_is_the_first_of_them() -> None:
    classifier = built("vgg16")
    unfreeze(classifier, "classifier")
    assert trained(classifier) == ["classifier.0", "classifier.3", "head"]


@pytest.mark.parametrize("which", ["last:6", "last:0", "layer", "layer9", ""])
def test_a_stage_that_is_not_there_is_an_error_that_lists_those_that_are(which: str) -> None:
    with pytest.raises(OptionError, match=r"last:1 to last:5.*conv1, layer1, layer2, layer3, layer4, head"):
        unfreeze(built("resnet18"), which)


def test_what_airbench_never_trains_stays_frozen() -> None:
    classifier, _ = build(NetworkOptions("airbench", width=8), 2, (32, 32))
    assert isinstance(classifier.backbone, Airbench)
    classifier.backbone.initialise_whitening(torch.randn(4, 3, 32, 32))
    before = [name for name, parameter in classifier.named_parameters() if not parameter.requires_grad]
    unfreeze(classifier, "head")
    unfreeze(classifier, "all")
    assert [name for name, parameter in classifier.named_parameters() if not parameter.requires_grad] == before
    assert len(before) == 7


def test_frozen_batch_norms_keep_their_statistics_and_the_others_learn() -> None:
    classifier, _ = build(NetworkOptions("resnet9", width=4), 2, (32, 32))
    unfreeze(classifier, "layer3")
    before = {name: value.clone() for name, value in classifier.state_dict().items() if "running" in name}
    set_training_mode(classifier.eval())
    classifier(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8))
    after = classifier.state_dict()
    moved = {name.split(".")[1] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"layer3", "residual3"}


def test_rates_fall_from_the_head_to_the_pixels() -> None:
    classifier = built("resnet18")
    scales = learning_rate_scales(classifier, 0.5)
    assert len(scales) == len(list(classifier.parameters()))
    by_stage = [{scales[parameter] for parameter in stage.parameters()} for stage in stages(classifier)]
    assert by_stage == [{0.5**5}, {0.5**4}, {0.5**3}, {0.5**2}, {0.5}, {1.0}]
