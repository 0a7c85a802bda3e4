"""Where a network looks: what its answer loses where a part of the picture is covered. Needs nothing but the file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls import images
from edgecls.images import Pixels
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.pipeline import Frame, Source

GRID: Final = 8  # places down and across
_COVER: Final = 0.25  # of each side, so that covers overlap


def occlusion_of(classifier: Classifier, path: Path, label: str) -> NDArray[np.float32]:
    """How much probability a label loses where each part of a picture is covered with its mean colour.

    Source: M. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks", arXiv 1311.2901.

    Returns:
        (8, 8) float32, from the top left; negative where the cover makes the label more probable.

    Raises:
        ImageError: the file cannot be read.
    """
    picture = images.decode(images.read(path))
    covered = [Source.of(Frame("", each)) for each in (picture, *_covered(picture))]
    index = classifier.labels.index(label)
    found = [
        classifier.voting.mean(classifier.probabilities(answered))[:, index]
        for answered in classifier.answers(covered, n_sources=len(covered))
    ]
    whole, *parts = np.concatenate(found).tolist()
    lost: NDArray[np.float32] = np.float32(whole) - np.array(parts, np.float32).reshape(GRID, GRID)
    return lost


def _covered(picture: Pixels) -> list[Pixels]:
    height, width = picture.shape[:2]
    colour = np.rint(picture.reshape(-1, 3).mean(axis=0)).astype(np.uint8)
    down, across = (max(1, round(_COVER * side)) for side in (height, width))
    pictures = []
    for row in range(GRID):
        for column in range(GRID):
            top, left = round((height - down) * row / (GRID - 1)), round((width - across) * column / (GRID - 1))
            copy = picture.copy()
            copy[top : top + down, left : left + across] = colour
            pictures.append(copy)
    return pictures
