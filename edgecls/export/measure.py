"""Accuracy and speed of a run's model files, side by side on the same validation images in one go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls import images, metrics
from edgecls.datasets import LabelledImage
from edgecls.errors import ImageError
from edgecls.images import Pixels
from edgecls.manifest import Precision, Preprocessing
from edgecls.prefetch import batches, n_cores, prefetch
from edgecls.runtime.backend import Backend
from edgecls.runtime.classifier import BATCH_SIZE

_MIN_TIMED: Final = 15  # batches a file is timed on at least: the median of fewer is noise


@dataclass(frozen=True)
class Measurement:
    """One model file on the validation split.

    Attributes:
        accuracy: top-1, 0 to 1.
        agreement: share of images answered as the checkpoint answered them, 0 to 1.
        images_per_second: of inference alone, median over batches of `batch_size`.
        bytes: of the file.
        backend: what ran it, e.g. `onnxruntime-cpu`.
    """

    accuracy: float
    agreement: float
    images_per_second: float
    bytes: int
    backend: str
    batch_size: int
    n_images: int


def measure(
    backends: Mapping[Precision, Backend],
    files: Mapping[Precision, Path],
    validation: Sequence[LabelledImage],
    truth: NDArray[np.int64],
    checkpoint_answers: NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    on_images: Callable[[int], None] = lambda n: None,
) -> dict[Precision, Measurement]:
    """Run every file on every validation image, batch by batch in turn.

    The files take turns within each batch, so a machine that is slow for a minute is slow for all of them
    and the ratios hold. Images are decoded once; a few batches are in memory.

    Args:
        truth: (n,) label index of the validation images.
        checkpoint_answers: (n,) label index that the checkpoint gave.
        on_images: called with the number of images done, for a progress bar.

    Raises:
        ImageError: a validation image has become unreadable since training.
    """
    answers: dict[Precision, list[NDArray[np.int64]]] = {precision: [] for precision in backends}
    seconds: dict[Precision, list[float]] = {precision: [] for precision in backends}
    batch = np.empty((0, *preprocessing.size_hw, 3), np.uint8)
    for batch in _batches(validation, preprocessing):
        for precision, backend in backends.items():
            started = time.perf_counter()
            logits = backend.infer(batch)
            if len(batch) == BATCH_SIZE:
                seconds[precision].append((time.perf_counter() - started) / len(batch))
            answers[precision].append(logits.argmax(1))
        on_images(len(batch))
    _time_more(backends, batch, seconds)
    return {
        precision: Measurement(
            accuracy=metrics.accuracy(np.concatenate(answers[precision]), truth),
            agreement=metrics.accuracy(np.concatenate(answers[precision]), checkpoint_answers),
            images_per_second=1 / float(np.median(seconds[precision])),
            bytes=files[precision].stat().st_size,
            backend=backend.name,
            batch_size=BATCH_SIZE,
            n_images=len(validation),
        )
        for precision, backend in backends.items()
    }


def _batches(validation: Sequence[LabelledImage], preprocessing: Preprocessing) -> Iterator[Pixels]:
    def load(image: LabelledImage) -> Pixels:
        try:
            return images.load(image.path, preprocessing)
        except ImageError as error:
            raise ImageError(f"{error.reason}; it was readable when the run was trained", str(image.path)) from error

    loaded = prefetch(load, validation, n_threads=n_cores(), ahead=2 * BATCH_SIZE)
    return (np.stack(batch) for batch in batches(loaded, BATCH_SIZE))


def _time_more(backends: Mapping[Precision, Backend], pixels: Pixels, seconds: dict[Precision, list[float]]) -> None:
    """A small validation split has too few full batches for a median: repeat its last images up to one."""
    full = np.resize(pixels, (BATCH_SIZE, *pixels.shape[1:]))
    while any(len(times) < _MIN_TIMED for times in seconds.values()):
        for precision, backend in backends.items():
            started = time.perf_counter()
            backend.infer(full)
            seconds[precision].append((time.perf_counter() - started) / BATCH_SIZE)
