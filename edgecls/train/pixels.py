"""Labelled images to arrays: decoded once, cropped, kept as uint8, read many times."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from edgecls import images
from edgecls.datasets import LabelledImage
from edgecls.errors import ImageError, TrainingError
from edgecls.manifest import Preprocessing
from edgecls.prefetch import n_cores, prefetch
from edgecls.train.augment import Augmentation

MEMORY_SHARE = 0.5  # of the free memory; a larger array lies in a temporary file, mapped into memory


@dataclass(frozen=True)
class DecodedImages:
    """Pixels of the readable images, and the reasons of the others.

    Attributes:
        pixels: (n, h, w, 3) uint8, RGB, in the order of the images that were asked for.
        unreadable: reason by image.
    """

    pixels: Tensor
    unreadable: dict[LabelledImage, str]


def decode_images(labelled: Sequence[LabelledImage], preprocessing: Preprocessing) -> DecodedImages:
    """Decode every image once, in threads.

    Raises:
        TrainingError: neither memory nor the temporary folder has room.
    """
    pixels = _allocate((len(labelled), *preprocessing.size_hw, 3))

    def fill(row: int) -> str | None:
        try:
            pixels[row] = images.load(labelled[row].path, preprocessing)
        except ImageError as error:
            return error.reason
        return None

    threads = n_cores()
    reasons = list(prefetch(fill, range(len(labelled)), n_threads=threads, ahead=8 * threads))
    unreadable = {image: reason for image, reason in zip(labelled, reasons, strict=True) if reason is not None}
    if unreadable:
        pixels = pixels[np.array([reason is None for reason in reasons])]
    return DecodedImages(torch.from_numpy(pixels), unreadable)


def _allocate(shape: tuple[int, ...]) -> images.Pixels:
    n_bytes = prod(shape)
    if n_bytes <= _free_memory() * MEMORY_SHARE:
        return np.empty(shape, np.uint8)
    try:
        file = tempfile.TemporaryFile(prefix="edgecls-pixels-")  # noqa: SIM115  the mapping keeps it open
        file.truncate(n_bytes)
    except OSError as error:
        raise TrainingError(
            f"{shape[0]} images of {shape[1]} x {shape[2]} need {n_bytes / 2**30:.1f} GiB, more than half the free "
            f"memory, and the temporary folder has no room ({error.strerror}); set TMPDIR or a smaller --image-size"
        ) from error
    return np.memmap(file, np.uint8, "r+", shape=shape)


def _free_memory() -> int:
    """Bytes that can be allocated without swapping; assumes 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 4 << 30
    return int(kib) << 10


@dataclass(frozen=True)
class Batches:
    """Batches of (inputs, targets) from arrays in memory; iterate anew for every epoch.

    Attributes:
        inputs: (n, ...) pixels or features.
        targets: (n,) int64 label indices.
        batch_size: images in a batch; the last one may be smaller, none is dropped.
        seed: where given, every epoch is in a new order drawn from it; where None, the order is kept.
        augmentation: applied to each batch of pixels.
    """

    inputs: Tensor
    targets: Tensor
    batch_size: int
    seed: int | None = None
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"inputs and targets: expected one length, got {len(self.inputs)} and {len(self.targets)}")
        # one generator for all epochs: each is shuffled differently, and all of them repeat with the seed
        object.__setattr__(self, "_generator", torch.Generator().manual_seed(self.seed or 0))

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator: torch.Generator = self._generator  # type: ignore[attr-defined]
        if self.seed is None:
            yield from zip(
                torch.split(self.inputs, self.batch_size), torch.split(self.targets, self.batch_size), strict=True
            )
            return
        for rows in torch.split(torch.randperm(len(self.inputs), generator=generator), self.batch_size):
            if len(rows) == 1 < len(self.inputs):  # batch norm cannot train on one image: pair it with another
                rows = torch.cat([rows, torch.randint(len(self.inputs), (1,), generator=generator)])
            inputs = self.inputs[rows]
            if self.augmentation:
                inputs = self.augmentation(inputs, generator)
            yield inputs, self.targets[rows]
