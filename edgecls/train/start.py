"""What a training begins with: images, a network for their labels, and how they become its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgecls import images
from edgecls.datasets import SPLITS, Dataset, stratified_sample
from edgecls.errors import ImageError
from edgecls.image_header import read_header
from edgecls.manifest import Preprocessing
from edgecls.train.models import PixelClassifier, build
from edgecls.train.options import SCRATCH, NetworkOptions, TrainOptions


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        dataset: images by split.
        classifier: untrained, or a trained one that is to learn more.
        preprocessing: how pictures become its input.
        network: what the classifier is rebuilt from.
        run: whose weights the classifier has; empty for new or published ones.
    """

    dataset: Dataset
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
    classifier, preprocessing = build(options.network, len(dataset.labels), _size_hw(options, dataset))
    return Start(dataset, classifier, preprocessing, options.network)


def _size_hw(options: TrainOptions, dataset: Dataset) -> tuple[int, int] | None:
    network = options.network
    if network.image_size:
        return network.image_size, network.image_size
    if network.model not in SCRATCH:
        return None
    sides = []
    for image in stratified_sample(dataset.splits["train"], 100, options.data_use.seed):
        try:
            header = read_header(images.read(image.path))
        except ImageError:
            continue  # reported when all images are decoded
        sides.append(min(header.height, header.width))
    side = min(max(round(float(np.median(sides)) / 8) * 8, 32), 128) if sides else 128
    return side, side


def described(start: Start) -> str:
    """One line about the images and the network."""
    dataset = start.dataset
    counts = ", ".join(f"{len(dataset.splits[split]):,} {split}" for split in SPLITS if dataset.splits[split])
    height, width = start.preprocessing.size_hw
    return (
        f"{len(dataset.labels)} classes, {counts} images; {start.network.model} at {height} x {width} px, "
        f"{start.n_parameters / 1e6:.2f} M parameters, weights: {start.run or start.network.resolved_weights}"
    )
