"""The answer for one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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
