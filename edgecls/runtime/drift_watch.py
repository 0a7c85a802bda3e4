"""Counts what pictures are like as they are answered, against the validation images of the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from edgecls.drift import FEATURES, Baseline, Counts, Drift, Feature, compared
from edgecls.errors import RunError
from edgecls.runs import Run, folder_of_run
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.pipeline import Answered
from edgecls.runtime.prediction import Prediction

_FEWEST: Final = 20  # pictures below which nothing is said


class DriftWatch:
    """The histograms of pictures; threads may add at once. Memory does not grow with their number."""

    def __init__(
        self, baseline: Baseline, labels: Sequence[str], features: Sequence[Feature], window: int | None
    ) -> None:
        """Watch some features of pictures.

        Args:
            labels: in the order of `baseline.answers`.
            window: how many of the last pictures are looked at; None for all.
        """
        self._baseline, self._features, self._window = baseline, tuple(features), window
        self._index = {label: index for index, label in enumerate(labels)}
        self._group_of, groups = baseline.groups
        self._expected: dict[Feature, Counts] = {
            "confidence": np.array(baseline.confidence.counts),
            "answers": groups,
            "brightness": np.array(baseline.brightness.counts),
            "size": np.array(baseline.size.counts),
        }
        self._counts = {feature: np.zeros_like(each) for feature, each in self._expected.items()}
        self._last: deque[tuple[int, ...]] = deque()
        self._lock = threading.Lock()
        self.n = 0

    @classmethod
    def of(
        cls, classifier: Classifier, window: int | None = None, *, on_note: Callable[[str], None] = lambda line: None
    ) -> DriftWatch | None:
        """A watch for an opened model; None where its run has no baseline, or a damaged one, which `on_note` is told.

        Several members or views are surer, or less sure, than the one that was validated: their confidence is not
        compared, and the first member's validation images stand for all.
        """
        member = classifier.members[0]
        if member.file is None:
            return None
        run = Run(folder_of_run(member.file))
        try:
            baseline = Baseline.of(run)
        except RunError as error:  # pictures are answered all the same
            on_note(f"warning: whether pictures differ from the validation images is not told: {error}")
            return None
        if baseline is None or set(run.manifest.labels) != set(classifier.labels):  # a file of another model lies there
            return None
        is_plain = len(classifier.members) == 1 and len(member.views) == 1
        features = [each for each in FEATURES if is_plain or each != "confidence"]
        return cls(baseline, run.manifest.labels, features, window)

    def add(self, answered: Answered, predictions: Sequence[Prediction]) -> None:
        """Count a batch.

        Args:
            predictions: one for each source, before any of them is held back as too uncertain.
        """
        rows = [each for each, reason in zip(predictions, answered.reasons, strict=True) if not reason]
        kept = [index for index, each in enumerate(rows) if each.status == "ok"]  # else no finite number
        if not kept:
            return
        labels = np.array([self._index[rows[index].label] for index in kept])
        confidences = np.array([rows[index].probability for index in kept])
        binned = (
            self._baseline.confidence.bins(confidences),
            self._group_of[labels],
            self._baseline.brightness.bins(answered.brightness[kept]),
            self._baseline.size.bins(answered.sides[kept]),
        )
        with self._lock:
            self.n += len(kept)
            for feature, bins in zip(FEATURES, binned, strict=True):
                np.add.at(self._counts[feature], bins, 1)
            if self._window:
                self._last.extend(zip(*(bins.tolist() for bins in binned), strict=True))
                while len(self._last) > self._window:
                    self.n -= 1
                    for feature, bin_ in zip(FEATURES, self._last.popleft(), strict=True):
                        self._counts[feature][bin_] -= 1

    def drift(self) -> Drift | None:
        """What differs by now; None after too few pictures to say."""
        with self._lock:
            if self.n < _FEWEST:
                return None
            features = {each: compared(self._expected[each], self._counts[each]) for each in self._features}
            return Drift(self.n, self._baseline.n, features)
