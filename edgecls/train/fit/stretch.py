"""What the weights behind the head learn from: pictures, or activations in front of them that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from edgecls.labelled import Split
from edgecls.train.data.batches import Drawing, Inputs
from edgecls.train.data.mixing import Mixing
from edgecls.train.fit.loop import Logits
from edgecls.train.fit.recipes import Recipe
from edgecls.train.machine import free_memory, resolved_device
from edgecls.train.networks.cut import activation_bytes, cut_before_trained
from edgecls.train.networks.features import features_of
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.networks.stages import unfreeze
from edgecls.train.options import MachineOptions

_GPU_SHARE: Final = 0.25  # of the free memory of a GPU may hold the pixels of the training
_MEMORY_SHARE: Final = 0.5  # of the free memory may hold activations


@dataclass(frozen=True)
class Pictures:
    """Those of a training, and their labels.

    Attributes:
        pixels: (n, h, w, 3) uint8 of the splits `train` and `val`, perhaps `test`; or activations in place of them.
        targets: (n,) int64 label indices of `train` and `val`.
    """

    pixels: Mapping[Split, Inputs]
    targets: Mapping[str, Tensor]


@dataclass(frozen=True)
class Stretch:
    """What one choice of weights learns from.

    Attributes:
        which: weights are trained, as `--unfreeze` names them.
        logits: how a batch becomes logits.
    """

    which: str
    pictures: Pictures
    logits: Logits
    drawing: Drawing

    @property
    def title(self) -> str:
        return "all weights" if self.which == "all" else f"unfrozen {self.which}"


def stretch_of(
    which: str, classifier: PixelClassifier, pictures: Pictures, recipe: Recipe, machine: MachineOptions, *,
    is_taught: bool, say: Callable[[str], None],
) -> Stretch:  # fmt: skip
    """Unfreeze, and choose what is learnt from.

    Args:
        is_taught: a teacher has to see the pictures too.
        say: called with a line where activations take their place.

    Raises:
        OptionError: a stage that the network does not have.
    """
    unfreeze(classifier, which)
    mixes = recipe.mixup or recipe.cutmix
    mixing = Mixing(classifier.n_classes, recipe.mixup, recipe.cutmix) if mixes else None
    drawing = Drawing(recipe.seed, recipe.balance == "sampling", recipe.augmentation, mixing)
    are_varied = recipe.augmentation.operations or recipe.augmentation.erase or mixing
    # the averaged weights of a moving average are a copy, which a cut network knows nothing of
    if which != "all" and not (are_varied or is_taught or recipe.ema):
        cached = _activations(classifier, pictures, recipe, machine)
        if cached:
            say(f"the activations in front of {which} are computed once: pictures are not varied")
            return Stretch(which, *cached, replace(drawing, augmentation=None))
    return Stretch(which, _on_device(pictures, machine), _whole, drawing)


def _activations(
    classifier: PixelClassifier, pictures: Pictures, recipe: Recipe, machine: MachineOptions
) -> tuple[Pictures, Logits] | None:
    """What the frozen front gives for every picture: on a CPU, where the network can be cut and memory has room."""
    cut = cut_before_trained(classifier) if resolved_device(machine) == "cpu" else None
    if cut is None:
        return None
    n_pictures = sum(len(each) for each in pictures.targets.values())
    if n_pictures * activation_bytes(cut, recipe.preprocessing.size_hw) > _MEMORY_SHARE * free_memory():
        return None
    rest = cut.rest
    splits: tuple[Split, ...] = ("train", "val")
    activations: dict[Split, Inputs] = {split: features_of(cut.front, pictures.pixels[split]) for split in splits}
    return Pictures(activations, pictures.targets), lambda classifier, inputs: classifier.classify(rest(inputs))


def _on_device(pictures: Pictures, machine: MachineOptions) -> Pictures:
    """On the GPU where they fit: gathering and augmenting there costs next to nothing."""
    if resolved_device(machine) == "cpu" or machine.devices > 1:
        return pictures
    tensors = {split: each for split, each in pictures.pixels.items() if isinstance(each, Tensor)}
    free, _ = torch.cuda.mem_get_info()
    if len(tensors) < len(pictures.pixels) or sum(each.nbytes for each in tensors.values()) > free * _GPU_SHARE:
        return pictures
    targets = {split: each.cuda() for split, each in pictures.targets.items()}
    return Pictures({split: each.cuda() for split, each in tensors.items()}, targets)


def _whole(classifier: PixelClassifier, pixels: Tensor) -> Tensor:
    logits: Tensor = classifier(pixels)
    return logits
