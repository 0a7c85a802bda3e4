"""What a training begins with: images, a network for their labels, and how they become its input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from edgecls.datasets import Dataset
from edgecls.labelled import SPLITS
from edgecls.manifest import Preprocessing
from edgecls.train.data.survey import Survey, survey_of
from edgecls.train.networks.models import PixelClassifier, build
from edgecls.train.networks.sizes import run_at_size, takes
from edgecls.train.options import TrainOptions
from edgecls.train.recipe_options import SCRATCH, GeometryOptions, NetworkOptions

_ENLARGEMENT: Final = 4.0  # of small pictures for weights that were trained on large ones
_SMALLEST_ENLARGED: Final = 96


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        dataset: images by split.
        survey: what the training images are.
        classifier: untrained, or a trained one that is to learn more.
        preprocessing: how pictures become its input.
        network: what the classifier is rebuilt from.
        run: whose weights the classifier has; empty for new or published ones.
    """

    dataset: Dataset
    survey: Survey
    classifier: PixelClassifier
    preprocessing: Preprocessing
    network: NetworkOptions
    run: str = ""

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.classifier.parameters())


def start_of(options: TrainOptions, dataset: Dataset) -> Start:
    """A network with a fresh head for the labels of a data set.

    Raises:
        OptionError, MissingExtra, TrainingError: as `models.build` says.
    """
    survey = survey_of(dataset, options.data_use.seed)
    size_hw = options.network.size_hw or _scratch_size(options.network, survey)
    classifier, own = build(options.network, len(dataset.labels), size_hw)
    if size_hw is not None:
        check_size(classifier, size_hw, options.network.model)
    else:
        own = replace(own, size_hw=_size_for_small_pictures(classifier, own.size_hw, survey))
    return Start(dataset, survey, classifier, with_geometry(own, options.geometry), options.network)


def with_geometry(own: Preprocessing, asked: GeometryOptions) -> Preprocessing:
    """A network's own preprocessing with what was asked for in its place; by itself, the whole picture is shown.

    The centre crop that published weights are measured with would cut off what lies at the border. On made photos of
    surfaces with small defects, up to twice as high as wide, it cost 5 points of accuracy and 17 of macro recall; on
    weather it cost 2 points, and on cats and dogs it gained nothing (docs/training.md).
    """
    resize = asked.resize or "squash"
    whole = own.crop_fraction if resize == "shortest" else 1.0
    return replace(
        own,
        resize=resize,
        crop_fraction=whole if asked.crop is None else asked.crop,
        interpolation=asked.interpolation or own.interpolation,
    )


def _scratch_size(network: NetworkOptions, survey: Survey) -> tuple[int, int] | None:
    """That of the pictures, for networks that have no size of their own."""
    if network.model not in SCRATCH:
        return None
    side = min(max(round((survey.side or 128) / 8) * 8, 32), 128)
    return side, side


def _size_for_small_pictures(classifier: PixelClassifier, own_hw: tuple[int, int], survey: Survey) -> tuple[int, int]:
    """Four times the side of small pictures, where that is less than the size that the weights were trained at.

    More would cost time and bring no detail; less would leave the last stages of the network maps of a few pixels.
    """
    side = max(_SMALLEST_ENLARGED, round(_ENLARGEMENT * survey.side / 32) * 32)
    if not survey.side or side >= min(own_hw):
        return own_hw
    is_taken = takes(classifier.eval(), _blank((side, side)))  # a transformer knows one size
    classifier.train()
    return (side, side) if is_taken else own_hw


def check_size(classifier: PixelClassifier, size_hw: tuple[int, int], model: str) -> None:
    """Let a network answer an empty picture, which takes milliseconds: only the network knows its smallest size.

    Raises:
        OptionError: it cannot take images of that size.
    """
    run_at_size(classifier.eval(), _blank(size_hw), model)
    classifier.train()


def _blank(size_hw: tuple[int, int]) -> Tensor:
    return torch.zeros(1, *size_hw, 3, dtype=torch.uint8)


def described(start: Start) -> str:
    """One line about the images and the network."""
    dataset, survey = start.dataset, start.survey
    counts = ", ".join(f"{len(dataset.splits[split]):,} {split}" for split in SPLITS if dataset.splits[split])
    height, width = start.preprocessing.size_hw
    grey = "grey " if survey.is_grey else ""
    return (
        f"{len(dataset.labels)} classes, {counts} {grey}images; {start.network.model} at {height} x {width} px, "
        f"{start.n_parameters / 1e6:.2f} M parameters, weights: {start.run or start.network.resolved_weights}"
    )
