"""A model and labelled images to every figure of it, and to a page to look at."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgecls.datasets import ClassNames, Dataset, read_labelled, read_split
from edgecls.errors import DatasetError, ImageError, OptionError
from edgecls.evaluate.answers import Answers, answers_of
from edgecls.evaluate.contestant import Contestant, expect_a_vote
from edgecls.evaluate.copies import n_with_content_of
from edgecls.evaluate.corruptions import Robustness, robustness_of
from edgecls.evaluate.gallery import UNSURE, WRONG, Shown, gallery_of
from edgecls.evaluate.occlusion import occlusion_of
from edgecls.evaluate.options import Condition, EvaluateOptions
from edgecls.evaluate.scores import Scores, scores_of
from edgecls.evaluate.slices import Slice, slices_of
from edgecls.labelled import LabelledImage
from edgecls.local_copy import local_copy
from edgecls.progress import Progress
from edgecls.runs import MANIFEST, SPLIT, Run, find_model
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.stages import Stage, StageSummary

_N_EXPLAINED: Final = 12  # pictures of which it is shown where the network looks; 65 inferences each


@dataclass(frozen=True)
class Failed:
    """A condition of `--fail-if` that holds."""

    condition: str
    value: float


@dataclass(frozen=True)
class EvaluateResult:
    """What one model answers to labelled images.

    Attributes:
        data: what the images are, in words.
        notes: what a reader of the figures must know.
        ms: of inference, milliseconds an image; stages: the same of every stage.
        gallery: pictures by title.
        looked_at: by path, what an answer loses where each part of the picture is covered, (8, 8).
        unreadable: reason by path of the images that are in no figure.
        out: the folder with the page.
    """

    model: str
    network: str
    precision: str
    backend: str
    n_views: int
    data: str
    n_classes: int
    scores: Scores
    slices: tuple[Slice, ...]
    gallery: Mapping[str, tuple[Shown, ...]]
    robustness: tuple[Robustness, ...]
    failed: tuple[Failed, ...]
    notes: tuple[str, ...]
    unreadable: Mapping[str, str]
    ms: float
    stages: Mapping[Stage, StageSummary]
    seconds: float
    out: Path
    looked_at: Mapping[str, NDArray[np.float32]]

    @property
    def verdict(self) -> str:
        return "failed" if self.failed else "passed"

    def to_json(self) -> dict[str, Any]:
        """All of it; pictures by their paths."""
        values = {name: value for name, value in vars(self).items() if name not in ("looked_at", "scores")}
        values |= {name: [asdict(each) for each in values[name]] for name in ("slices", "robustness", "failed")}
        values["stages"] = {stage: asdict(each) for stage, each in self.stages.items()}
        values["gallery"] = {
            title: [{**asdict(each), "path": str(each.path)} for each in pictures]
            for title, pictures in self.gallery.items()
        }
        return {**values, "out": str(self.out), "verdict": self.verdict, "scores": self.scores.to_json()}


@dataclass(frozen=True)
class Evaluated:
    """A result with what its page is drawn from."""

    result: EvaluateResult
    answers: Answers
    manifest: Mapping[str, Any]


def evaluate(options: EvaluateOptions, progress: Progress = Progress()) -> Evaluated:
    """Answer every image once, and measure. Nothing is written.

    Raises:
        RunError, OptionError, MissingExtra: the model cannot be opened.
        DatasetError: no labelled images, labels that the model does not know, or none that can be read.
    """
    started = time.perf_counter()
    contestant = Contestant.parse(options.model, options.classifier, options.vote)
    expect_a_vote([contestant], options.vote)
    with contestant.open(progress.on_step) as classifier:
        judged = judged_images([contestant], options.data, ClassNames.of(classifier.manifest), progress)
        (answers,) = answers_of([classifier], judged.images, progress)
        scores = scores_of(answers, options.target)
        gallery = gallery_of(answers)
        explained = [*gallery[WRONG], *gallery[UNSURE]][:_N_EXPLAINED] if options.occlusion else []
        robustness = robustness_of(classifier, answers.images, progress) if options.corruptions else ()
        result = EvaluateResult(
            model=options.model,
            network=", ".join(dict.fromkeys(each.backend.manifest.model for each in classifier.members)),
            precision=classifier.precision,
            backend=classifier.backend_name,
            n_views=len(classifier.members[0].views),
            data=judged.told,
            n_classes=len(answers.labels),
            scores=scores,
            slices=slices_of(answers, judged.source),
            gallery=gallery,
            robustness=robustness,
            failed=tuple(_failed(options.conditions, scores)),
            notes=judged.notes,
            unreadable=judged.unreadable(answers),
            ms=answers.ms,
            stages=answers.stages,
            seconds=time.perf_counter() - started,
            out=options.out,
            looked_at=_looked_at(classifier, explained, progress),
        )
        manifest = {"training": classifier.manifest.training, "metrics": classifier.manifest.metrics}
    return Evaluated(result, answers, manifest)


def _failed(conditions: Sequence[Condition], scores: Scores) -> list[Failed]:
    found = []
    for condition in conditions:
        figure = scores.figures()[condition.figure]
        if figure is None:
            raise OptionError(f"--fail-if {condition}: of five classes or less there is no top5; leave it out")
        if condition.holds(figure.value):
            found.append(Failed(str(condition), figure.value))
    return found


def _looked_at(
    classifier: Classifier, explained: Sequence[Shown], progress: Progress
) -> Mapping[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    if explained:
        progress.on_pass("where the network looks", len(explained))
    for each in explained:
        if each.answer in classifier.labels:
            try:
                found[str(each.path)] = occlusion_of(classifier, each.path, each.answer)
            except ImageError:  # it changed since it was answered
                continue
        progress.on_images(1)
    return found


# --- The images ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedImages:
    """The labelled images that models are measured with.

    Attributes:
        told: what they are, in words.
        source: folder or CSV that they are from; None where they are those of a run.
        notes: what is to be known of them.
        reasons: by path of those that could not be fetched from where they are kept.
    """

    images: tuple[LabelledImage, ...]
    told: str
    source: Path | None
    notes: tuple[str, ...]
    reasons: Mapping[Path, str]

    def unreadable(self, answers: Answers) -> dict[str, str]:
        """Reason by path of the images that have no answer."""
        return {str(path): self.reasons.get(path, reason) for path, reason in answers.unreadable.items()}


def judged_images(
    contestants: Sequence[Contestant], data: str | Path | None, classes: ClassNames, progress: Progress = Progress()
) -> JudgedImages:
    """The labelled images of a folder, an address or a CSV.

    Args:
        contestants: all that will answer them.
        data: None takes the test images of the first one's run, or the images that validated it.

    Raises:
        DatasetError: there are none.
        MissingExtra: an address, and pyarrow is not installed.
    """
    first = contestants[0]
    notes: list[str] = []
    own = _split_of(first.models[0])
    copy = None if data is None else local_copy(data, progress)
    if copy is not None:
        images, told = read_labelled(copy.path, classes), str(data)
        notes += copy.notes
    elif own and own.splits["test"]:
        images, told = own.splits["test"], "the run's test images"
    elif own and len(first.models) == 1:
        images, told = own.splits["val"], "the run's validation images"
        notes.append(f"the best epoch of {first.name} was chosen by these very images, so its figures flatter a little")
    else:  # what validated one member of a vote may have trained another
        raise DatasetError(
            f"{first.name}: it does not say which images it was tested on; name some: class folders, or a CSV with the "
            "columns path and label"
        )
    for each in contestants:
        trained_on = {image.path for name in each.models if (s := _split_of(name)) for image in s.splits["train"]}
        others = [image.path for image in images if image.path not in trained_on]
        n_copies = n_with_content_of(trained_on, others)
        if n_seen := len(images) - len(others) + n_copies:
            as_copies = f", {n_copies:,} of them as copies in other files" if n_copies else ""
            seen = f"{n_seen:,} of {len(images):,} images"
            notes.append(f"{seen} were trained on by {each.name}{as_copies}, so its figures flatter")
    return JudgedImages(images, told, copy.path if copy else None, tuple(notes), copy.reasons if copy else {})


def _split_of(model: str) -> Dataset | None:
    """How a run dealt out its images; None for a file that lies in no run."""
    path = find_model(model)
    run = Run(path if path.is_dir() else path.parent)
    is_run = run.path(MANIFEST).is_file() and run.path(SPLIT).is_file()
    return read_split(run.path(SPLIT), run.manifest.labels) if is_run else None
