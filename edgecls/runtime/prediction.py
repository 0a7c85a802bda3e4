"""The answer for one image, and what gives such answers: one model, or several that vote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import ImageError, OptionError
from edgecls.images import Pixels
from edgecls.runtime.pipeline import Answered, Frame, Picture
from edgecls.runtime.stages import StageTimes
from edgecls.runtime.votes import Floats

Status = Literal["ok", "error", "abstained"]


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        path: as it was given; empty for an array.
        status: `ok`; `error` with a `reason` and no answer; `abstained` with a `reason` and a probability, no label.
        label, probability: the best answer; empty and nan for an error.
        top: the best `top_k` (label, probability), best first.
        agreement: of an ensemble, the share of the members whose own answer this is, 0 to 1; else None.
        entropy: of an ensemble, that of its mean probabilities in nats: 0 is sure; else None.
        members: of an ensemble, each member's own answer.
    """

    path: str
    status: Status = "ok"
    label: str = ""
    probability: float = float("nan")
    reason: str = ""
    top: tuple[tuple[str, float], ...] = ()
    agreement: float | None = None
    entropy: float | None = None
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.status == "ok") != bool(self.top) or (self.status != "ok") != bool(self.reason):
            raise ValueError(f"a prediction has an answer or a reason, got {self.top} and {self.reason!r}")

    def unless_below(self, min_confidence: float) -> Prediction:
        """The same, or no answer where its probability is below `min_confidence`."""
        if self.status != "ok" or self.probability >= min_confidence:
            return self
        reason = f"abstained: {self.label} at {self.probability:.3f} is below {min_confidence:g}"
        return replace(self, status="abstained", label="", reason=reason, top=())


def ranked(scores: Floats, k: int) -> NDArray[np.int64]:
    """Label indices by score, best first, the earlier label first where scores are equal: (n, C) -> (n, min(k, C))."""
    if k == 1:  # the usual case, at a hundredth of the time of a sort
        order: NDArray[np.int64] = scores.argmax(axis=1, keepdims=True)
    else:
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order


def no_number(name: str) -> Prediction:
    """For a picture to which the network answers nan or infinity: whichever label came first would be a guess."""
    reason = "the network's answer is not a finite number; edgecls verify tells whether the model file is right"
    return Prediction(name, "error", reason=reason)


def top_of(labels: Sequence[str], order: NDArray[np.int64], probabilities: Floats) -> tuple[tuple[str, float], ...]:
    """The (label, probability) of one image in the order of `order`."""
    return tuple((labels[index], float(probabilities[index])) for index in order)


def one_a_picture(answered: Answered, answer: Callable[[int, str], Prediction]) -> list[Prediction]:
    """One for each picture of a batch, in order.

    Args:
        answer: gives the prediction from the row among the batch's answers, and the picture's name.
    """
    predictions = []
    row = 0
    for picture, reason in zip(answered.pictures, answered.reasons, strict=True):
        name = picture.name if isinstance(picture, Frame) else str(picture)
        predictions.append(Prediction(name, "error", reason=reason) if reason else answer(row, name))
        row += not reason
    return predictions


class Predictor(ABC):
    """What a classifier and an ensemble have in common: pictures in, predictions out."""

    @abstractmethod
    def answers(
        self,
        pictures: Iterable[Picture],
        *,
        times: StageTimes | None = None,
        n_pictures: int | None = None,
        is_live: bool = False,
    ) -> Iterator[Answered]:
        """As `predict`, a batch at a time and with what every member and view said.

        Args:
            n_pictures: how many there are, where that is known: a few are dealt out to all cores.
        """

    @abstractmethod
    def predictions(self, answered: Answered, top_k: int) -> list[Prediction]:
        """One for each picture of a batch, in order."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def close(self) -> None:
        """Give the models' memory back, as the end of a `with` block does."""
        self.__exit__(None, None, None)

    def predict(
        self,
        pictures: Iterable[Picture],
        *,
        top_k: int = 1,
        times: StageTimes | None = None,
        is_live: bool = False,
    ) -> Iterator[Prediction]:
        """Yield exactly one prediction per picture, in order; a file that cannot be read yields its reason.

        Files are read, decoded and answered in threads ahead of the caller, two batches a worker at most.

        Args:
            pictures: image files, or frames; drawn lazily, so they may be a stream.
            top_k: how many (label, probability) in `Prediction.top`.
            times: where given, filled with the time of every stage.
            is_live: answer each picture before the next one is waited for, as a camera wants it.
        """
        if isinstance(pictures, (str, Path)):
            raise OptionError(f"predict takes several paths, got one: predict([{str(pictures)!r}])")
        if top_k < 1:
            raise OptionError(f"top_k {top_k}: expected 1 or more")
        n_pictures = len(pictures) if isinstance(pictures, Sized) else None
        for answered in self.answers(pictures, times=times, n_pictures=n_pictures, is_live=is_live):
            yield from self.predictions(answered, top_k)

    def predict_arrays(self, arrays: Sequence[Pixels], *, top_k: int = 1) -> list[Prediction]:
        """Predict decoded pictures of any size.

        Args:
            arrays: each (h, w, 3) uint8, RGB (OpenCV reads BGR: convert first).

        Raises:
            ImageError: an array of another shape or dtype, or a strip too thin to resize.
        """
        frames = [Frame("", checked(array)) for array in arrays]
        predictions = list(self.predict(frames, top_k=top_k))
        for prediction in predictions:
            if prediction.status == "error":
                raise ImageError(prediction.reason)
        return predictions


def checked(array: Pixels) -> Pixels:
    """The same array.

    Raises:
        ImageError: it is no (height, width, 3) uint8 picture.
    """
    if not (
        isinstance(array, np.ndarray)
        and array.dtype == np.uint8
        and array.ndim == 3
        and array.shape[2] == 3
        and array.size
    ):
        got = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
        raise ImageError(f"expected a (height, width, 3) uint8 RGB array, got {got}")
    return array
