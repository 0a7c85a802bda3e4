"""Several models on the same images: who is better, by how much, by more than chance, and on which pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgecls import metrics
from edgecls.datasets import ClassNames
from edgecls.errors import OptionError
from edgecls.evaluate.answers import Answers, answers_of
from edgecls.evaluate.contestant import Contestant, expect_a_vote, named
from edgecls.evaluate.costs import Cost, cost_of
from edgecls.evaluate.evaluate import judged_images
from edgecls.evaluate.gallery import Shown, shown
from edgecls.evaluate.options import CompareOptions
from edgecls.evaluate.runs_table import RunsResult, is_folder_of_runs, runs_of
from edgecls.evaluate.scores import scores_of
from edgecls.metrics import Figure, PairedDifference
from edgecls.progress import Progress
from edgecls.runtime.classifier import Classifier

_MOST: Final = 10  # models
_N_FLIPS: Final = 12  # pictures of each direction
_N_CLASSES: Final = 20  # that are disagreed on most


@dataclass(frozen=True)
class Compared:
    """One model among the others.

    Attributes:
        validation_loss, validation_accuracy: what its training measured; None where it does not say, or of a vote.
        loss, accuracy, f1: on the images of this comparison; loss in nats, F1 as the mean over the classes.
        unique_correct, unique_errors: images that it alone got right, and wrong.
        ms, images_per_second: of inference on this machine.
        difference: the best model and this one, on the same images; None for the best.
        p_value: of that difference, by McNemar's test with Holm's correction for all that are compared.
        is_on_front: no other is as accurate in less time.
    """

    name: str
    precision: str
    backend: str
    cost: Cost
    validation_loss: float | None
    validation_accuracy: float | None
    loss: Figure
    accuracy: Figure
    f1: Figure
    unique_correct: int
    unique_errors: int
    ms: float
    images_per_second: float
    difference: PairedDifference | None
    p_value: float | None
    is_on_front: bool


@dataclass(frozen=True)
class Flips:
    """Pictures on which a model and the best one differ, and one of them is right.

    Attributes:
        fixed: that this model gets right and the best does not; broken: the other way round.
    """

    name: str
    fixed: tuple[tuple[Shown, Shown], ...]
    broken: tuple[tuple[Shown, Shown], ...]


@dataclass(frozen=True)
class Disagreement:
    """A class, and the share of its images on which not all models say the same."""

    label: str
    n: int
    share: float


@dataclass(frozen=True)
class CompareResult:
    """Models on the same images.

    Attributes:
        models: in the order in which they were named; `best` is the name of the most accurate, the fastest of equals.
        flips: of every other model against the best.
        out: the folder with the page.
    """

    data: str
    n: int
    best: str
    models: tuple[Compared, ...]
    flips: tuple[Flips, ...]
    disagreements: tuple[Disagreement, ...]
    notes: tuple[str, ...]
    unreadable: Mapping[str, str]
    seconds: float
    out: Path

    def to_json(self) -> dict[str, Any]:
        """All of it; pictures by their paths."""
        values = {name: value for name, value in vars(self).items() if name not in ("models", "flips", "disagreements")}
        flips = [
            {
                "name": each.name,
                **{kind: [str(best.path) for best, _ in getattr(each, kind)] for kind in ("fixed", "broken")},
            }
            for each in self.flips
        ]
        return {
            **values,
            "out": str(self.out),
            "models": [asdict(each) for each in self.models],
            "flips": flips,
            "disagreements": [asdict(each) for each in self.disagreements],
        }


def compare(options: CompareOptions, progress: Progress = Progress()) -> CompareResult | RunsResult:
    """Let all models answer the same images, which are read once; of a folder of runs, table these.

    Nothing is written.

    Raises:
        OptionError: one model only, more than ten, or models of different classes.
        RunError, MissingExtra: a model cannot be opened.
        DatasetError: no labelled images.
    """
    started = time.perf_counter()
    folder = Path(options.models[0])
    if len(options.models) == 1 and is_folder_of_runs(folder):
        return runs_of(folder)
    contestants = named([Contestant.parse(text, options.classifier, options.vote) for text in options.models])
    if not 2 <= len(contestants) <= _MOST:
        got = "one model" if len(contestants) == 1 else f"{len(contestants)} models"
        raise OptionError(f"{got}: expected 2 to {_MOST} to compare, or a folder of runs")
    for number, each in enumerate(contestants):
        if any(replace(each, name="") == replace(other, name="") for other in contestants[:number]):
            raise OptionError(f"{options.models[number]}: is named twice; expected different models or settings")
    expect_a_vote(contestants, options.vote)
    with ExitStack() as stack:
        opened = [stack.enter_context(each.open(progress.on_step)) for each in contestants]
        judged = judged_images(contestants, options.data, ClassNames.of(opened[0].manifest), progress)
        answers = answers_of(opened, judged.images, progress)
        models = _compared([each.name for each in contestants], opened, answers)
    best = _best(answers)
    return CompareResult(
        data=judged.told,
        n=len(answers[0].images),
        best=models[best].name,
        models=models,
        flips=tuple(_flips(each.name, answers[best], answers[i]) for i, each in enumerate(models) if i != best),
        disagreements=_disagreements(answers),
        notes=judged.notes,
        unreadable=judged.unreadable(answers[0]),
        seconds=time.perf_counter() - started,
        out=options.out,
    )


def _best(answers: Sequence[Answers]) -> int:
    return min(range(len(answers)), key=lambda i: (-int(answers[i].is_right.sum()), answers[i].ms))


def _compared(names: Sequence[str], opened: Sequence[Classifier], answers: Sequence[Answers]) -> tuple[Compared, ...]:
    best = _best(answers)
    right = np.stack([each.is_right for each in answers])
    n_right = right.sum(axis=0)
    differences = [
        None if i == best else metrics.paired_difference(answers[best].predicted, each.predicted, each.truth)
        for i, each in enumerate(answers)
    ]
    corrected = iter(metrics.holm([each.p_value for each in differences if each]))
    front = metrics.on_front([(each.ms, float(each.is_right.mean())) for each in answers])
    found = []
    for i, (name, classifier, each) in enumerate(zip(names, opened, answers, strict=True)):
        scores, manifest = scores_of(each), classifier.manifest
        alone = len(classifier.members) == 1
        found.append(
            Compared(
                name=name,
                precision=classifier.precision,
                backend=classifier.backend_name,
                cost=cost_of(classifier.members),
                validation_loss=manifest.metrics.get("validation_loss") if alone else None,
                validation_accuracy=manifest.metrics.get("validation_accuracy") if alone else None,
                loss=scores.log_loss,
                accuracy=scores.accuracy,
                f1=scores.f1,
                unique_correct=int((right[i] & (n_right == 1)).sum()),
                unique_errors=int((~right[i] & (n_right == len(answers) - 1)).sum()),
                ms=each.ms,
                images_per_second=1000 / max(each.ms, 1e-9),
                difference=differences[i],
                p_value=next(corrected) if differences[i] else None,
                is_on_front=front[i],
            )
        )
    return tuple(found)


def _flips(name: str, best: Answers, other: Answers) -> Flips:
    def pairs(rows: NDArray[np.int64]) -> tuple[tuple[Shown, Shown], ...]:
        surest = rows[np.argsort(-np.maximum(best.confidence[rows], other.confidence[rows]), kind="stable")][:_N_FLIPS]
        return tuple(zip(shown(best, surest.tolist()), shown(other, surest.tolist()), strict=True))

    return Flips(
        name,
        pairs(np.flatnonzero(other.is_right & ~best.is_right)),
        pairs(np.flatnonzero(best.is_right & ~other.is_right)),
    )


def _disagreements(answers: Sequence[Answers]) -> tuple[Disagreement, ...]:
    """The classes that are disagreed on most, those first."""
    predicted, truth = np.stack([each.predicted for each in answers]), answers[0].truth
    differs = (predicted != predicted[0]).any(axis=0)
    found = [
        Disagreement(label, int((truth == i).sum()), float(differs[truth == i].mean()))
        for i, label in enumerate(answers[0].labels)
        if (truth == i).any()
    ]
    ordered = sorted((each for each in found if each.share), key=lambda each: -each.share)
    return tuple(ordered[:_N_CLASSES])
