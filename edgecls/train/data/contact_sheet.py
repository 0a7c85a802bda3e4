"""A page of pictures as the network sees them: varied for training, and as prediction will see the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from matplotlib.figure import Figure  # not pyplot: no display, no global state
from matplotlib.gridspec import GridSpec

from edgecls.datasets import Dataset
from edgecls.labelled import stratified_sample
from edgecls.runs import atomic_path
from edgecls.train.data.augment import Augmentation
from edgecls.train.data.batches import Inputs, generator_of

_N_PICTURES: Final = 16
_ACROSS: Final = 8
_LONGEST_NAME: Final = 14  # characters of a class name over a picture


def write_contact_sheet(path: Path, dataset: Dataset, pixels: Inputs, augmentation: Augmentation) -> None:
    """Write 16 training pictures of all classes in turn, each twice: varied, and below that as prediction sees it.

    Args:
        pixels: of the training split, (n, h, w, 3) uint8.
        augmentation: of the training; without any, both are the same.
    """
    images = dataset.splits["train"]
    chosen = set(stratified_sample(images, _N_PICTURES, 0))
    rows = torch.tensor([row for row, image in enumerate(images) if image in chosen])
    plain = pixels[rows]
    varied = augmentation(plain, generator_of(0))
    n = len(rows)
    across, down = min(n, _ACROSS), -(-n // _ACROSS)
    figure = Figure(figsize=(1.3 * across + 1.1, 3.0 * down + 0.4), layout="constrained")
    grid = GridSpec(2 * down, across, figure=figure)
    for place, row in enumerate(rows.tolist()):
        for below, shown in enumerate((varied, plain)):
            axes = figure.add_subplot(grid[2 * (place // across) + below, place % across])
            axes.imshow(shown[place].numpy())
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if not below:
                axes.set_title(_short(images[row].label), fontsize=8)
            if place % across == 0:
                axes.set_ylabel("prediction" if below else "training", fontsize=8)
    height, width = plain.shape[1:3]
    varied_by = ", ".join(augmentation.operations) or "nothing"
    title = f"What the network sees, {height} x {width} px; training pictures are varied by: {varied_by}"
    figure.suptitle(title, fontsize=9)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _short(label: str) -> str:
    plain = label.replace("$", r"\$")  # which matplotlib would read as a formula
    return plain if len(plain) <= _LONGEST_NAME else plain[: _LONGEST_NAME - 1] + "…"
