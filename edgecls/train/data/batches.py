"""Inputs and targets, batch by batch: drawn anew in every epoch, and the same again for the same seed and epoch.

Everything random in a batch follows from (seed, epoch, number of the batch) alone. So a run that was killed goes on
with the very batches that it would have seen, and it does not matter who prepares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from edgecls.prefetch import prefetch
from edgecls.train.data.augment import Augmentation
from edgecls.train.data.mixing import Mixing

_AHEAD: Final = 2  # batches that are prepared before they are asked for


class Inputs(Protocol):
    """Rows by their indices: a tensor in memory, or pictures that are decoded when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor) -> Tensor: ...


class Batch(NamedTuple):
    """What one step sees.

    Attributes:
        inputs: (n, ...) pixels or features.
        targets: (n,) int64 label indices, or (n, n_classes) float32 shares where pictures were mixed.
        weight: what the mean loss of these is multiplied by, so that the average over processes is the mean over
            all of their images; 1 for a single process.
    """

    inputs: Tensor
    targets: Tensor
    weight: float = 1.0


def in_order(inputs: Inputs, batch_size: int) -> Iterator[Tensor]:
    """All rows, `batch_size` at a time."""
    return (inputs[rows] for rows in torch.split(torch.arange(len(inputs)), batch_size))


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that depends on all of the numbers, and on nothing else."""
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True)
class Drawing:
    """How an epoch of training is drawn.

    Attributes:
        seed: of order, augmentation and mixing.
        balanced: draw every class equally often (with replacement) instead of every image once.
        augmentation, mixing: applied to each batch of pixels.
    """

    seed: int
    balanced: bool = False
    augmentation: Augmentation | None = None
    mixing: Mixing | None = None


@dataclass
class Batches:
    """Batches of (inputs, targets); iterate anew for every epoch, after setting `epoch`.

    Attributes:
        inputs: (n, ...) pixels or features.
        targets: (n,) int64 label indices.
        batch_size: images in a batch; the last one may be smaller, none is dropped.
        drawing: None keeps the order and changes nothing.
        part: (rank, n_ranks): which part of every batch this process takes.
        epoch: which of the seeded epochs comes next.
        n_images: of an epoch; None for all. Epochs of fewer go through all images before one is seen again.
    """

    inputs: Inputs
    targets: Tensor
    batch_size: int
    drawing: Drawing | None = None
    part: tuple[int, int] = (0, 1)
    epoch: int = 0
    n_images: int | None = None
    _mirrored: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"inputs and targets: expected one length, got {len(self.inputs)} and {len(self.targets)}")
        # which pictures the first epoch mirrors; the next one mirrors the others, so that two epochs show both views
        # of every picture (alternating flip, arXiv 2404.00498)
        seed = self.drawing.seed if self.drawing else 0
        self._mirrored = torch.rand(len(self.targets), generator=generator_of(seed)) < 0.5

    def __len__(self) -> int:
        return -(-self._n_wanted // self.batch_size)

    @property
    def _n_wanted(self) -> int:
        n = len(self.targets)
        return n if self.n_images is None else min(self.n_images, n)

    def __iter__(self) -> Iterator[Batch]:
        # a generator, which begins at its first batch: Lightning makes the iterator before the epoch is told
        rows = list(enumerate(torch.split(self._order(), self.batch_size)))
        if isinstance(self.inputs, Tensor):  # in memory: a gather is too quick to be worth a thread
            yield from map(self._batch, rows)
        else:
            yield from prefetch(self._batch, rows, n_threads=1, ahead=_AHEAD)

    def _order(self) -> Tensor:
        n, wanted = len(self.targets), self._n_wanted
        if self.drawing is None:
            return torch.arange(wanted)
        seed = self.drawing.seed
        if self.drawing.balanced:
            targets = self.targets.cpu()  # where the generator is
            shares = 1 / torch.bincount(targets)[targets].double()
            return torch.multinomial(shares, wanted, replacement=True, generator=generator_of(seed, self.epoch))
        first = self.epoch * wanted  # of an endless row of passes, each in an order of its own
        passes = range(first // n, (first + wanted - 1) // n + 1)
        rows = torch.cat([torch.randperm(n, generator=generator_of(seed, number)) for number in passes])
        return rows[first % n :][:wanted]

    def _batch(self, numbered: tuple[int, Tensor]) -> Batch:
        number, rows = numbered
        rank, n_ranks = self.part
        if self.drawing is None:
            rows = rows[rank::n_ranks]
            return Batch(self.inputs[rows], self.targets[rows])
        fewest = min(
            2 * n_ranks, len(self.targets)
        )  # batch norm cannot train on one image: others are drawn to join it
        if len(rows) < fewest:
            joining = generator_of(self.drawing.seed, self.epoch, number)
            rows = torch.cat([rows, torch.randint(len(self.targets), (fewest - len(rows),), generator=joining)])
        mine = rows[rank::n_ranks]
        inputs, targets = self.inputs[mine], self.targets[mine]
        generator = generator_of(self.drawing.seed, self.epoch, number, rank)
        if self.drawing.augmentation:
            mirrored = self._mirrored[mine] ^ bool(self.epoch % 2)
            inputs = self.drawing.augmentation(inputs, generator, mirrored)
        if self.drawing.mixing:
            inputs, targets = self.drawing.mixing(inputs, targets, generator)
        return Batch(inputs, targets, len(mine) * n_ranks / len(rows))
