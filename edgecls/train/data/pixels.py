"""Labelled images to arrays: decoded once, cropped, kept as uint8, read many times."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from edgecls import images
from edgecls.datasets import Dataset
from edgecls.errors import ImageError, TrainingError
from edgecls.labelled import SPLITS, LabelledImage, Split
from edgecls.manifest import Preprocessing
from edgecls.prefetch import n_cores, prefetch
from edgecls.train.data.batches import Inputs
from edgecls.train.machine import free_memory
from edgecls.train.options import Cache
from edgecls.train.progress import Listener, Progress

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


class _NoRoom(Exception):
    """Neither memory nor the temporary folder has room."""


def decode_images(
    labelled: Sequence[LabelledImage], preprocessing: Preprocessing, *, in_memory: bool = False,
    on_image: Callable[[int], None] = lambda done: None,
) -> DecodedImages:  # fmt: skip
    """Decode every image once, in threads.

    Args:
        in_memory: keep the pixels in memory, however much of it they take.
        on_image: called with the number of those that are decoded.
    """
    shape = (len(labelled), *preprocessing.size_hw, 3)
    pixels = np.empty(shape, np.uint8) if in_memory else _allocate(shape)

    def fill(row: int) -> str | None:
        try:
            pixels[row] = images.load(labelled[row].path, preprocessing)
        except ImageError as error:
            return error.reason
        return None

    threads = n_cores()
    reasons: list[str | None] = []
    for reason in prefetch(fill, range(len(labelled)), n_threads=threads, ahead=8 * threads):
        reasons.append(reason)
        on_image(len(reasons))
    unreadable = {image: reason for image, reason in zip(labelled, reasons, strict=True) if reason is not None}
    if unreadable:
        kept = [row for row, reason in enumerate(reasons) if reason is None]
        for row, source in enumerate(kept):  # in place: a copy of what lies in a file would not fit into memory
            if row != source:
                pixels[row] = pixels[source]
        pixels = pixels[: len(kept)]
    return DecodedImages(torch.from_numpy(pixels), unreadable)


def _allocate(shape: tuple[int, ...]) -> images.Pixels:
    n_bytes = prod(shape)
    if n_bytes <= free_memory() * MEMORY_SHARE:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile(prefix="edgecls-pixels-") as file:  # the mapping outlives it
            os.posix_fallocate(file.fileno(), 0, n_bytes)  # a sparse file would end in a bus error on a full disk
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise _NoRoom(error.strerror) from error


@dataclass(frozen=True)
class DecodedOnDemand:
    """Pictures that are decoded every time they are asked for: for sets that neither memory nor disk can hold.

    Attributes:
        labelled: images that are known to be readable.
    """

    labelled: Sequence[LabelledImage]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(k,) int64 -> (k, h, w, 3) uint8, decoded on all cores.

        Raises:
            TrainingError: a file that was readable before training no longer is.
        """
        return self._decoded([self.labelled[row] for row in rows.tolist()])

    def _decoded(self, wanted: Sequence[LabelledImage]) -> Tensor:
        decoded = decode_images(wanted, self.preprocessing, in_memory=True)  # a batch always is
        if decoded.unreadable:
            image, reason = next(iter(decoded.unreadable.items()))
            raise TrainingError(f"{image.path} was readable when training began and no longer is: {reason}")
        return decoded.pixels


def decoding_warnings(cache: Cache, pixels: Inputs) -> Iterator[str]:
    """A line where pictures that were to be kept have to be decoded anew in every epoch."""
    if cache == "auto" and isinstance(pixels, DecodedOnDemand):
        yield (
            "neither memory nor the temporary folder holds the decoded pictures: they are decoded anew in every "
            "epoch; a smaller --image-size may fit"
        )


@dataclass(frozen=True)
class Rows:
    """Some rows of inputs that several trainings share.

    Attributes:
        whole: pixels of all images.
        rows: (k,) int64.
    """

    whole: Inputs
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.whole[self.rows[rows]]


@dataclass(frozen=True)
class Decoded:
    """The images of a data set that can be read, and their pixels by split.

    Attributes:
        seconds: that decoding took; 0 of pixels that were there already.
    """

    dataset: Dataset
    pixels: Mapping[Split, Inputs]
    seconds: float = 0.0

    def dealt(self, dataset: Dataset) -> Decoded:
        """The same pixels for a data set whose splits `train` and `val` are dealt out of this one's `train`."""
        row = {image: row for row, image in enumerate(self.dataset.splits["train"])}
        dealt: dict[Split, Inputs] = {"test": self.pixels["test"]}
        splits: tuple[Split, ...] = ("train", "val")
        for split in splits:
            rows = torch.tensor([row[image] for image in dataset.splits[split]], dtype=torch.int64)
            dealt[split] = Rows(self.pixels["train"], rows)
        return Decoded(dataset, dealt)


def decode(
    dataset: Dataset, preprocessing: Preprocessing, cache: Cache, listener: Listener = Listener()
) -> Decoded:  # fmt: skip
    """The pixels of a data set, less what cannot be decoded, kept where there is room for them.

    Args:
        cache: `ram` keeps all in memory, `none` decodes every picture whenever it is needed, and `auto` keeps them in
            memory, in a temporary file where half of the free memory is too small, or not at all.
        listener: told after every picture.

    Raises:
        DatasetError: a class has no readable training image left.
        TrainingError: `ram`, and the pictures do not fit.
    """
    started = time.perf_counter()
    n_images = sum(len(dataset.splits[split]) for split in SPLITS)
    n_bytes = n_images * prod((*preprocessing.size_hw, 3))
    if cache == "ram" and n_bytes > free_memory():
        raise TrainingError(
            f"--cache ram: the pictures take {n_bytes / 2**30:.1f} GiB and {free_memory() / 2**30:.1f} GiB are free; "
            "use --cache auto, or a smaller --image-size"
        )
    decoded: dict[Split, DecodedImages] = {}
    try:
        for split in SPLITS if cache != "none" else ():
            before = sum(len(dataset.splits[each]) for each in decoded)

            def tell(done: int, before: int = before) -> None:
                listener.on_progress(Progress("reading the pictures", before + done, n_images))

            decoded[split] = decode_images(
                dataset.splits[split], preprocessing, in_memory=cache == "ram", on_image=tell
            )  # fmt: skip
    except _NoRoom:
        decoded = {}  # neither memory nor the temporary folder: decode on demand
    if decoded:
        unreadable = {image: reason for each in decoded.values() for image, reason in each.unreadable.items()}
        readable = dataset.without(unreadable)
        pixels: dict[Split, Inputs] = {split: each.pixels for split, each in decoded.items()}
    else:
        every = [image for split in SPLITS for image in dataset.splits[split]]
        readable = dataset.without(unreadable_images(every, preprocessing))
        pixels = {split: DecodedOnDemand(readable.splits[split], preprocessing) for split in SPLITS}
    return Decoded(readable, pixels, time.perf_counter() - started)


def unreadable_images(labelled: Sequence[LabelledImage], preprocessing: Preprocessing) -> dict[LabelledImage, str]:
    """Reason by image of those that cannot be decoded; keeps none of the pixels."""

    def reason_of(image: LabelledImage) -> str | None:
        try:
            images.load(image.path, preprocessing)
        except ImageError as error:
            return error.reason
        return None

    reasons = prefetch(reason_of, labelled, n_threads=n_cores(), ahead=8 * n_cores())
    return {image: reason for image, reason in zip(labelled, reasons, strict=True) if reason is not None}
