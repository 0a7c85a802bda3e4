"""Golden answers: a few real images with the logits that a run's model gives for them, which every export must give."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls import images
from edgecls.errors import MissingExtra, RunError
from edgecls.images import Pixels
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import GOLDEN, MANIFEST, Run, atomic_path

N_GOLDEN: Final = 16  # images kept with their logits in the run folder

# Of the largest golden logit: float32 kernels of two engines differ by about 1e-6 of it, a swapped channel or a
# retyped mean by more than 1e-1.
TOLERANCE: Final = 1e-3

_ABOUT: Final = "about"

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

    def __post_init__(self) -> None:
        n = len(self.images) if self.images.ndim else 0
        got = {name: f"{each.dtype} {each.shape}" for name, each in vars(self).items()}
        if not (n and self.images.dtype == np.uint8 and self.images.ndim == 4 and self.images.shape[3] == 3):
            raise RunError(f"images are {got['images']}, expected one or more of uint8 (n, h, w, 3)")
        if self.logits.dtype != np.float32 or self.logits.ndim != 2 or len(self.logits) != n:
            raise RunError(f"logits are {got['logits']}, expected float32 ({n}, n_classes)")
        if self.validation_answers.dtype.kind != "i" or self.validation_answers.ndim != 1:
            raise RunError(f"validation answers are {got['validation_answers']}, expected int64 (n,)")

    @classmethod
    def of(cls, run: Run) -> Golden:
        """Read a run's golden answers.

        Raises:
            RunError: missing, damaged, or of a run with other labels or another preprocessing.
        """
        path = run.path(GOLDEN)
        try:
            with path.open("rb") as file:
                arrays = dict(np.load(file))
            golden = cls(arrays["images"], arrays["logits"], arrays["validation_answers"])
            told = json.loads(arrays[_ABOUT].tobytes()) if _ABOUT in arrays else None
        except Exception as error:  # zip, zlib, npy and ourselves each have classes of their own for damage
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RunError(
                f"{path}: no readable golden answers ({said}); put back a copy of it, or make the run again"
            ) from error
        if told is not None and told != json.loads(_about(run.manifest)):
            raise RunError(
                f"{path}: is of a run with other labels or another preprocessing than {run.path(MANIFEST)} says; one "
                "of the two was changed or copied from another run: put back what was there, or make the run again"
            )
        return golden

    def write(self, run: Run, manifest: Manifest | None = None) -> None:
        """Write them into a run, atomically.

        Args:
            manifest: of the run, where it is not written yet.
        """
        about = np.frombuffer(_about(manifest or run.manifest).encode(), np.uint8)
        with atomic_path(run.path(GOLDEN)) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file, images=self.images, logits=self.logits, validation_answers=self.validation_answers, about=about
            )


def _about(manifest: Manifest) -> str:
    """Labels and preprocessing, by which golden answers know their run again."""
    return json.dumps([manifest.labels, manifest.label_ids, asdict(manifest.preprocessing)])


def relative_difference(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Largest |difference| of any logit, as a share of the largest reference logit; nan where one of them is."""
    largest = np.maximum(np.abs(reference).max(), np.finfo(np.float32).tiny)  # all may be zero
    return float(np.abs(logits - reference).max() / largest)


def is_near(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> bool:
    """Whether these are answers of one network: within the tolerance, but for one image of eight.

    A tree's answer jumps where a feature crosses a threshold; another network is off on every image.
    """
    if logits.shape != reference.shape:
        return False
    allowed = TOLERANCE * np.abs(reference).max()
    return bool(np.mean(np.abs(logits - reference).max(1) <= allowed) >= 7 / 8)


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
