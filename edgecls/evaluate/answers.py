"""Classifiers and labelled images to what each of them answered, image by image. One decoding serves all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls.errors import DatasetError
from edgecls.labelled import LabelledImage
from edgecls.metrics import NO_ANSWER, Indices
from edgecls.progress import Progress
from edgecls.runtime import pipeline
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.ensemble import label_order
from edgecls.runtime.pipeline import Answered, Picture, Source
from edgecls.runtime.prediction import ranked
from edgecls.runtime.stages import Stage, StageSummary, StageTimes

MOST_KEPT: Final = 5  # answers of each image, best first: what top-5 needs, whatever the number of classes


@dataclass(frozen=True)
class Answers:
    """What one classifier answers to labelled images that can be read; memory does not grow with the classes.

    Attributes:
        labels: in the order of the indices below.
        images: in the order of the rows below.
        truth: (n,) label index.
        top: (n, k) label indices, best first, k at most 5; `NO_ANSWER` in the rows of answers that are not finite.
        probabilities: (n, k) of these, 0 to 1.
        of_truth: (n,) probability of the true label.
        ms: of inference, milliseconds an image.
        stages: milliseconds an image by stage, of all classifiers together.
        unreadable: reason by path of the images that are left out.
    """

    labels: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    truth: Indices
    top: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    of_truth: NDArray[np.float32]
    ms: float
    stages: Mapping[Stage, StageSummary]
    unreadable: dict[Path, str]

    def __post_init__(self) -> None:
        n = len(self.images)
        if not (len(self.truth) == len(self.top) == len(self.probabilities) == len(self.of_truth) == n):
            raise ValueError(f"expected {n} rows of each, one for every image")

    @property
    def predicted(self) -> Indices:
        """(n,) label index; `NO_ANSWER` where there is none."""
        return self.top[:, 0]

    @property
    def confidence(self) -> NDArray[np.float32]:
        """(n,) probability of the answer; 0 where there is none."""
        return self.probabilities[:, 0]

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """(n,)."""
        return np.asarray(self.predicted == self.truth)


def answers_of(
    classifiers: Sequence[Classifier],
    images: Sequence[LabelledImage],
    progress: Progress = Progress(),
    *,
    title: str = "images",
    pictures: Iterable[Picture] | None = None,
) -> tuple[Answers, ...]:
    """Let classifiers answer the same images; each file is read once for all of them.

    Args:
        classifiers: with the same labels; the first one's order of them is that of all answers.
        images: whose labels are theirs.
        title: of this pass, for a progress bar.
        pictures: what is answered in the place of each file, as a damaged copy of it.

    Raises:
        OptionError: they have other labels than the first.
        DatasetError: no image can be read.
    """
    labels = classifiers[0].labels
    orders = [label_order(labels, each.labels, ", ".join(each.voting.names)) for each in classifiers]
    kept = [_Kept(order) for order in orders]
    unreadable: dict[Path, str] = {}
    members = [member for classifier in classifiers for member in classifier.members]
    index = {label: number for number, label in enumerate(labels)}
    readable: list[LabelledImage] = []
    remaining = iter(images)
    progress.on_pass(title, len(images))
    times = StageTimes()
    n_workers = max(each.n_workers for each in classifiers)
    shown = (str(image.path) for image in images) if pictures is None else pictures
    for answered in pipeline.answers(
        members,
        (Source(picture, str(image.path), image.label) for picture, image in zip(shown, images, strict=True)),
        batch_size=min(each.batch_size for each in classifiers),
        n_workers=n_workers,
        times=times,
        n_sources=len(images),
    ):
        batch = [next(remaining) for _ in answered.sources]
        unreadable |= {image.path: why for image, why in zip(batch, answered.reasons, strict=True) if why}
        known = [image for image, why in zip(batch, answered.reasons, strict=True) if not why]
        readable += known
        truth = np.array([index[image.label] for image in known], np.int64)
        first = 0
        for classifier, each in zip(classifiers, kept, strict=True):
            own = answered.members[first : first + len(classifier.members)]
            first += len(classifier.members)
            if known:
                each.add(classifier, replace(answered, members=own), truth)
        progress.on_images(len(batch))
    if not readable:
        path, reason = next(iter(unreadable.items()))
        raise DatasetError(f"none of {len(images):,} images can be read, first {path}: {reason}; expected pictures")
    return tuple(each.answers(labels, tuple(readable), times.summaries(), unreadable) for each in kept)


class _Kept:
    """Rows of one classifier, batch after batch; `order` is where the common labels are among its own."""

    def __init__(self, order: NDArray[np.int64]) -> None:
        self._order = order
        self._rows: list[tuple[Indices, NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]] = []
        self._seconds = 0.0

    def add(self, classifier: Classifier, answered: Answered, truth: Indices) -> None:
        each = classifier.probabilities(answered)
        mean = classifier.voting.mean(each)[:, self._order]
        top = ranked(classifier.voting.scores(each)[:, self._order], MOST_KEPT)
        rows = np.arange(len(truth))
        is_answer: NDArray[np.bool_] = np.asarray(np.isfinite(mean).all(axis=1))
        top[~is_answer] = NO_ANSWER
        probabilities = np.where(is_answer[:, None], mean[rows[:, None], np.maximum(top, 0)], 0)
        of_truth = np.where(is_answer, mean[rows, truth], 0)
        self._rows.append((truth, top, probabilities.astype(np.float32), of_truth.astype(np.float32)))
        self._seconds += sum(member.seconds for member in answered.members)

    def answers(
        self,
        labels: tuple[str, ...],
        images: tuple[LabelledImage, ...],
        stages: Mapping[Stage, StageSummary],
        unreadable: dict[Path, str],
    ) -> Answers:
        truth, top, probabilities, of_truth = (np.concatenate(each) for each in zip(*self._rows, strict=True))
        ms = 1000 * self._seconds / len(images)
        return Answers(labels, images, truth, top, probabilities, of_truth, ms, stages, unreadable)
