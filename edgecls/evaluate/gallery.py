"""Which pictures are worth a look: the surest mistakes, the least certain answers, the surest right ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edgecls.evaluate.answers import Answers
from edgecls.metrics import NO_ANSWER

WRONG: Final = "Most confident and wrong"
UNSURE: Final = "Least certain"
RIGHT: Final = "Most confident and right"
NOTHING: Final = "(no answer)"  # in the place of a label, where the numbers of an answer are not finite
_N_WRONG: Final = 24
_N_OTHERS: Final = 12


@dataclass(frozen=True)
class Shown:
    """One picture with what was answered.

    Attributes:
        confidence: probability of the answer.
        of_truth: probability of the true label.
    """

    path: Path
    truth: str
    answer: str
    confidence: float
    of_truth: float

    @property
    def is_right(self) -> bool:
        return self.truth == self.answer


def gallery_of(answers: Answers) -> Mapping[str, tuple[Shown, ...]]:
    """Pictures by title; no picture stands twice."""
    confidence, is_right = answers.confidence, answers.is_right
    by_confidence = np.argsort(-confidence, kind="stable")
    wrong = by_confidence[~is_right[by_confidence]][:_N_WRONG]
    right = by_confidence[is_right[by_confidence]][:_N_OTHERS]
    taken = {*wrong.tolist(), *right.tolist()}
    unsure = [index for index in by_confidence[::-1].tolist() if index not in taken][:_N_OTHERS]
    return {
        WRONG: shown(answers, wrong.tolist()),
        UNSURE: shown(answers, unsure),
        RIGHT: shown(answers, right.tolist()),
    }


def shown(answers: Answers, rows: Iterable[int]) -> tuple[Shown, ...]:
    """Some rows of the answers, to be looked at."""
    return tuple(
        Shown(
            answers.images[row].path,
            answers.labels[answers.truth[row]],
            label_at(answers, int(answers.predicted[row])),
            float(answers.confidence[row]),
            float(answers.of_truth[row]),
        )
        for row in rows
    )


def label_at(answers: Answers, index: int) -> str:
    """The label with an index, or words where it is `NO_ANSWER`."""
    return NOTHING if index == NO_ANSWER else answers.labels[index]


def cells_of(answers: Answers, most_pictures: int, most_a_cell: int = 4) -> Mapping[tuple[int, int], tuple[Shown, ...]]:
    """Pictures for the cells of the confusion matrix, mistakes only, the most frequent first, the surest of each.

    Args:
        most_pictures: in all.
    """
    rows = np.flatnonzero(~answers.is_right)
    rows = rows[np.argsort(-answers.confidence[rows], kind="stable")]
    by_cell: dict[tuple[int, int], list[int]] = {}
    for row in rows.tolist():
        by_cell.setdefault((int(answers.truth[row]), int(answers.predicted[row])), []).append(row)
    found: dict[tuple[int, int], tuple[Shown, ...]] = {}
    for cell, of_cell in sorted(by_cell.items(), key=lambda each: -len(each[1])):
        taken = of_cell[: min(most_a_cell, most_pictures)]
        if not taken:
            break
        most_pictures -= len(taken)
        found[cell] = shown(answers, taken)
    return found
