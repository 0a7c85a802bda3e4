"""Who was right: views against the plain view, members against one another and every subset of them.

Counted as the answers come, in memory that does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgecls.metrics import mcnemar_p_value, on_front
from edgecls.runtime.backends.protocol import Backend
from edgecls.runtime.ensemble import Voting
from edgecls.runtime.votes import Floats

Indices = NDArray[np.int64]

_SIGNIFICANT: Final = 0.05


@dataclass(frozen=True)
class ViewReport:
    """One view's own answers against the plain view's, on images whose label is known.

    Attributes:
        gained: accuracy above the plain view's, a fraction; negative is lost.
        fixed, broken: images that only this view, and only the plain view, got right.
        added_ms: milliseconds an image; 0 for the plain view.
    """

    name: str
    accuracy: float
    gained: float
    fixed: int
    broken: int
    added_ms: float


@dataclass(frozen=True)
class TtaReport:
    """What test-time augmentation gave on pictures whose labels are known.

    Attributes:
        views: each alone, the plain view first.
        all: of all views together; `name` says how they are combined.
        p_value: exact McNemar test that all views together are as accurate as the plain view.
        is_worth_it: whether they are more accurate, and by more than chance gives.
        verdict: the same in words.
    """

    n: int
    views: tuple[ViewReport, ...]
    all: ViewReport
    p_value: float
    is_worth_it: bool
    verdict: str


class ViewTally:
    """Counts of one model's views."""

    def __init__(self, n_views: int) -> None:
        self.n = 0
        self._right = np.zeros(n_views + 1, np.int64)  # each view, and all together last
        self._fixed, self._broken = np.zeros_like(self._right), np.zeros_like(self._right)

    def add(self, view_answers: Indices, together: Indices, truth: Indices) -> None:
        """Count the answers to some pictures whose labels are known.

        Args:
            view_answers: (n, n_views), the plain view first; together, truth: (n,).
        """
        right = np.column_stack([view_answers, together]) == truth[:, None]
        plain = right[:, :1]
        self.n += len(truth)
        self._right += right.sum(axis=0)
        self._fixed += (right & ~plain).sum(axis=0)
        self._broken += (~right & plain).sum(axis=0)

    def report(self, names: Sequence[str], combine: str, ms_a_view: float) -> TtaReport | None:
        """None where no label is known.

        Args:
            ms_a_view: what one more view costs an image.
        """
        if not self.n:
            return None
        *views, together = (
            ViewReport(
                name, float(right / self.n), float((right - self._right[0]) / self.n), int(fixed), int(broken), added
            )
            for name, right, fixed, broken, added in zip(
                [*names, f"all, {combine}"],
                self._right,
                self._fixed,
                self._broken,
                [0.0, *[ms_a_view] * (len(names) - 1), ms_a_view * (len(names) - 1)],
                strict=True,
            )
        )
        p_value = mcnemar_p_value(together.broken, together.fixed)
        is_worth_it = together.gained > 0 and p_value < _SIGNIFICANT
        cost = f"{100 * together.gained:+.2f} points of accuracy for {together.added_ms:.1f} ms more for each image"
        chance = f"p = {p_value:.2g} on {self.n:,} images"
        verdict = f"worth it: {cost} ({chance})" if is_worth_it else f"not worth it here: {cost} ({chance})"
        return TtaReport(self.n, tuple(views), together, p_value, is_worth_it, verdict)


@dataclass(frozen=True)
class MemberReport:
    """One member of an ensemble.

    Attributes:
        accuracy: None where no label is known.
        parameters: weights of the network; None where its run does not say.
        infer_ms: of inference, milliseconds an image.
        only_right, only_wrong: images that it alone of all members got right, and wrong.
    """

    name: str
    model: str
    precision: str
    backend: str
    accuracy: float | None
    parameters: int | None
    infer_ms: float
    only_right: int
    only_wrong: int


@dataclass(frozen=True)
class SubsetReport:
    """Some of the members, voting alone.

    Attributes:
        infer_ms: of inference of all of them, milliseconds an image.
        is_on_front: no other subset is as accurate for less time, or more accurate for as much.
    """

    members: tuple[str, ...]
    accuracy: float
    infer_ms: float
    is_on_front: bool


@dataclass(frozen=True)
class EnsembleReport:
    """What the vote of several models gave, beside each model alone.

    Attributes:
        n: images whose label is known; accuracies are over these.
        accuracy: of the vote of all members; None where no label is known.
        tie_break: a member's name, or `probability`.
        subsets: every one, the fastest first; empty where they were not asked for, or no label is known.
    """

    vote: str
    tie_break: str
    n: int
    accuracy: float | None
    infer_ms: float
    members: tuple[MemberReport, ...]
    subsets: tuple[SubsetReport, ...]


class EnsembleTally:
    """Counts of the members, of all together and, where that is asked for, of every subset of them."""

    def __init__(self, voting: Voting, with_subsets: bool) -> None:
        self._voting = voting
        self.n = self.n_images = 0
        n_members = len(voting.names)
        sizes = range(1, n_members + 1) if with_subsets else (1, n_members)
        self._with_subsets = with_subsets
        self._right = {subset: 0 for size in sizes for subset in combinations(range(n_members), size)}
        self.only_right, self.only_wrong = np.zeros(n_members, np.int64), np.zeros(n_members, np.int64)
        self._seconds = np.zeros(n_members)

    def add_time(self, seconds: Sequence[float], n_images: int) -> None:
        """Record the members' inference of a batch."""
        self._seconds += seconds
        self.n_images += n_images

    def add(self, probabilities: Floats, truth: Indices) -> None:
        """Count the answers of every member to some pictures whose labels are known.

        Args:
            probabilities: (n_members, n, n_classes); truth: (n,).
        """
        right = probabilities.argmax(axis=2) == truth
        n_right = right.sum(axis=0)
        self.n += len(truth)
        self.only_right += (right & (n_right == 1)).sum(axis=1)
        self.only_wrong += (~right & (n_right == len(right) - 1)).sum(axis=1)
        for subset in self._right:
            self._right[subset] += int((self._voting.scores(probabilities, subset).argmax(axis=1) == truth).sum())

    def accuracy(self, subset: Sequence[int]) -> float | None:
        return self._right[tuple(subset)] / self.n if self.n else None

    def infer_ms(self, subset: Sequence[int]) -> float:
        return float(self._seconds[list(subset)].sum() * 1000 / max(self.n_images, 1))

    def report(self, backends: Sequence[Backend]) -> EnsembleReport:
        """What was counted; one backend for each member."""
        names, options = self._voting.names, self._voting.options
        members = [
            MemberReport(
                name,
                each.manifest.model,
                each.manifest.precision,
                each.name,
                self.accuracy([index]),
                int(n) if (n := each.manifest.metrics.get("parameters")) else None,
                self.infer_ms([index]),
                int(self.only_right[index]),
                int(self.only_wrong[index]),
            )
            for index, (name, each) in enumerate(zip(names, backends, strict=True))
        ]
        everyone = range(len(members))
        return EnsembleReport(
            vote=options.vote,
            tie_break=options.tie_break,
            n=self.n,
            accuracy=self.accuracy(everyone),
            infer_ms=self.infer_ms(everyone),
            members=tuple(members),
            subsets=self.subset_reports(),
        )

    def subset_reports(self) -> tuple[SubsetReport, ...]:
        """Every subset, the fastest first; none where they were not asked for, or no label is known."""
        if not (self.n and self._with_subsets):
            return ()
        points = [(self.infer_ms(subset), right / self.n) for subset, right in self._right.items()]
        names = self._voting.names
        reports = [
            SubsetReport(tuple(names[i] for i in subset), accuracy, ms, is_on_front)
            for subset, (ms, accuracy), is_on_front in zip(self._right, points, on_front(points), strict=True)
        ]
        return tuple(sorted(reports, key=lambda each: (each.infer_ms, each.accuracy)))
