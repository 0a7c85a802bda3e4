"""Golden answers: a few real images with the logits that a run's model gives for them, which every export must give."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from edgecls import images
from edgecls.errors import MissingExtra, RunError
from edgecls.images import Pixels
from edgecls.manifest import Preprocessing
from edgecls.runs import GOLDEN, Run, atomic_path

N_GOLDEN: Final = 16  # images kept with their logits in the run folder

# Of the largest golden logit: float32 kernels of two engines differ by about 1e-6 of it, a swapped channel or a
# retyped mean by more than 1e-1.
TOLERANCE: Final = 1e-3

_PHOTOS: Final = ("china.jpg", "flower.jpg")  # 640 x 427 pixels each, CC BY, in scikit-learn


@dataclass(frozen=True)
class Golden:
    """The reference answers of a run.

    Attributes:
        images: (k, h, w, 3) uint8, RGB.
        logits: (k, n_classes) float32, of the model that the run is about.
        validation_answers: (n,) int64, its label index for every validation image; empty where there are none.
    """

    images: Pixels
    logits: NDArray[np.float32]
    validation_answers: NDArray[np.int64]

    @classmethod
    def of(cls, run: Run) -> Golden:
        """Read a run's golden answers.

        Raises:
            RunError: missing or damaged.
        """
        try:
            with run.path(GOLDEN).open("rb") as file, np.load(file) as arrays:
                return cls(arrays["images"], arrays["logits"], arrays["validation_answers"])
        except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
            raise RunError(
                f"{run.path(GOLDEN)}: no readable golden answers ({type(error).__name__}); make the run again"
            ) from error

    def write(self, run: Run) -> None:
        """Write them into a run, atomically."""
        with atomic_path(run.path(GOLDEN)) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file, images=self.images, logits=self.logits, validation_answers=self.validation_answers
            )


def relative_difference(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Largest |difference| of any logit, as a share of the largest reference logit; nan where one of them is."""
    largest = np.maximum(np.abs(reference).max(), np.finfo(np.float32).tiny)  # all may be zero
    return float(np.abs(logits - reference).max() / largest)


def photo_crops(preprocessing: Preprocessing, n: int = N_GOLDEN) -> Pixels:
    """Real pixels for a run without data: different places, scales and mirrorings of two photos.

    The photos (a palace, a flower) come with scikit-learn. The same n gives the same crops.

    Returns:
        (n, *size_hw, 3) uint8, RGB, as `images.resize_and_crop` makes them.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    photos = [_photo(name) for name in _PHOTOS]
    rng = np.random.default_rng(0)
    crops = []
    for index in range(n):
        photo = photos[index % len(photos)]
        height, width = (int(side * rng.uniform(0.4, 1)) for side in photo.shape[:2])
        top, left = (int(rng.integers(spare + 1)) for spare in (photo.shape[0] - height, photo.shape[1] - width))
        crop = photo[top : top + height, left : left + width, :]
        is_mirrored = index // len(photos) % 2 == 1
        crops.append(images.resize_and_crop(crop[:, ::-1] if is_mirrored else crop, preprocessing))
    return np.stack(crops)


def _photo(name: str) -> Pixels:
    try:
        folder = resources.files("sklearn")
    except ModuleNotFoundError as error:
        raise MissingExtra("a run without data (its golden images are photos of scikit-learn)", "train") from error
    return images.decode((folder / "datasets" / "images" / name).read_bytes())
