"""What a run's model files answer on the validation images, and how fast: figures for the gate and for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls import images
from edgecls.errors import ImageError
from edgecls.export.judge.float16 import Misfit
from edgecls.export.judge.parity import Parity
from edgecls.images import Pixels
from edgecls.labelled import LabelledImage
from edgecls.manifest import Precision, Preprocessing
from edgecls.metrics import PairedDifference
from edgecls.prefetch import batches, n_cores, prefetch
from edgecls.runtime.backends.protocol import Backend

Logits = NDArray[np.float32]

_TIMED_CALLS: Final = 3
# ONNX Runtime's threads spin for some milliseconds in case that more work comes, on the cores of the file whose turn is
# next: with turns of one inference and no rest, FP32 took four times as long for one picture as it does alone
_REST_SECONDS: Final = 0.05
BATCH_SIZE: Final = 16  # images an inference where files are compared


@dataclass(frozen=True)
class ClassDrop:
    """What one class lost: images of it, and the share answered right by FP32 and by this file."""

    label: str
    n: int
    fp32: float
    accuracy: float


@dataclass(frozen=True)
class Measurement:
    """One model file on the validation images.

    Attributes:
        accuracy: top-1, 0 to 1; None where there are no validation images.
        agreement: share of the images answered as FP32 answers them; for FP32 itself, as the checkpoint did.
        images_per_second: of inference alone, median, batches of `batch_size`, on `backend`.
        speeds: img/s by batch size, likewise.
        bytes: of the file.
        backend: what ran it, e.g. `onnxruntime-cpu`.
        golden: against the golden answers.
        paired: FP32 and this file on the same images; None for FP32 and without images.
        classes: the classes that lost, the largest loss first.
        temperature: what its logits are divided by.
        ece_before, ece_after: expected calibration error without it and with.
        given_back: layers of an INT8 graph that stay float because it lost too much with them.
        sha256: of the file.
        n_answers, not_finite: answers to golden and validation images, and how many of them have a number that is
            not finite.
        in_float32: nodes that stay float32 because float16 cannot hold what they read or write.
        overflows: what the file holds in float16 all the same and float16 cannot hold, the largest first.
    """

    accuracy: float | None
    agreement: float | None
    images_per_second: float
    speeds: Mapping[int, float]
    bytes: int
    backend: str
    batch_size: int
    n_images: int
    golden: Parity
    paired: PairedDifference | None = None
    classes: tuple[ClassDrop, ...] = ()
    temperature: float = 1.0
    ece_before: float | None = None
    ece_after: float | None = None
    given_back: tuple[str, ...] = ()
    sha256: str = ""
    n_answers: int = 0
    not_finite: int = 0
    in_float32: tuple[str, ...] = ()
    overflows: tuple[Misfit, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why no accuracy can be trusted: the gate lets no such file through. Empty for a sound one."""
        lines = []
        if self.not_finite:
            lines.append(f"{self.not_finite} of {self.n_answers} answers are not finite numbers")
        if self.overflows:
            more = f" and {len(self.overflows) - 1} more" if len(self.overflows) > 1 else ""
            lines.append(f"{self.overflows[0]}{more}: wrong on a GPU")
        return tuple(lines)


def answers(
    backend: Backend,
    validation: Sequence[LabelledImage],
    preprocessing: Preprocessing,
    *,
    on_images: Callable[[int], None] = lambda n: None,
) -> Logits:
    """Logits for every image, (n, n_classes). A few batches of images are in memory.

    Args:
        on_images: called with the number of images done, for a progress bar.

    Raises:
        ImageError: an image has become unreadable.
    """
    logits = []
    for batch in pixels_of(validation, preprocessing):
        logits.append(backend.infer(batch))
        on_images(len(batch))
    return np.concatenate(logits)


def pixels_of(validation: Sequence[LabelledImage], preprocessing: Preprocessing) -> Iterator[Pixels]:
    """The images as the network takes them, `BATCH_SIZE` at a time.

    Raises:
        ImageError: an image has become unreadable.
    """

    def load(image: LabelledImage) -> Pixels:
        try:
            return images.load(image.path, preprocessing)
        except ImageError as error:
            raise ImageError(
                f"{error.reason}; accuracy is measured on every validation image, so mend or remove it",
                str(image.path),
            ) from error

    loaded = prefetch(load, validation, n_threads=n_cores(), ahead=2 * BATCH_SIZE)
    return (np.stack(batch) for batch in batches(loaded, BATCH_SIZE))


def speeds(
    backends: Mapping[Precision, Backend], pixels: Pixels, batch_sizes: Sequence[int], n_rounds: int
) -> dict[Precision, dict[int, float]]:
    """Images a second of inference alone, by file and batch size: medians over the rounds.

    The files take turns within each round, so a machine that is slow for a minute is slow for all of them
    and the ratios hold. In each turn one inference wakes the threads, and three are timed.

    Args:
        pixels: (n, h, w, 3) uint8, n >= 1; repeated up to the batch size.
    """
    found: dict[Precision, dict[int, float]] = {precision: {} for precision in backends}
    for size in batch_sizes:
        batch = np.resize(pixels, (size, *pixels.shape[1:]))
        seconds: dict[Precision, list[float]] = {precision: [] for precision in backends}
        for _ in range(n_rounds):
            for precision, backend in backends.items():
                time.sleep(_REST_SECONDS)
                backend.infer(batch)
                for _ in range(_TIMED_CALLS):
                    started = time.perf_counter()
                    backend.infer(batch)
                    seconds[precision].append(time.perf_counter() - started)
        for precision, each in seconds.items():
            found[precision][size] = size / float(np.median(each))
    return found
