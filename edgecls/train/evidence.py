"""Does what a training left say the same everywhere? Asked before files are made of it that would all agree.

`manifest.json` is one of several places that know the labels. Changed by hand, or beside files of another run, it
would give every export new names for the same answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from edgecls import metrics
from edgecls.datasets import targets_of
from edgecls.errors import RunError, some
from edgecls.golden import Golden
from edgecls.labelled import LabelledImage
from edgecls.manifest import Manifest
from edgecls.names import one_form
from edgecls.runs import CHECKPOINT, GOLDEN, METRICS, SPLIT, Run, read_json, sha256_of

_ROUNDING: Final = 1e-6  # of an accuracy that was written down, and is computed again from the same answers


def check_evidence(run: Run, validation: Sequence[LabelledImage], others: Iterable[str] = ()) -> None:
    """Compare the manifest with metrics.json and with the accuracy that was measured.

    Args:
        validation: the run's own validation images; empty where it has none.
        others: contradictions that are known already, in words.

    Raises:
        RunError: they contradict one another.
    """
    manifest = run.manifest
    found = [*_of_metrics(run, manifest), *_of_weights(run, manifest), *others, *_of_answers(run, manifest, validation)]
    if found:
        raise RunError(
            f"{run.folder}: its files contradict one another: {'; '.join(found)}. One of them was changed, or copied "
            "here from another run; nothing was written. Put back what was there, or train again"
        )


def _of_metrics(run: Run, manifest: Manifest) -> Iterator[str]:
    if not run.path(METRICS).is_file():
        return
    labels = read_json(run.path(METRICS)).get("labels")
    if isinstance(labels, list) and [one_form(str(each)) for each in labels] != [*map(one_form, manifest.labels)]:
        yield f"{METRICS} has the labels {some([str(each) for each in labels])}, the manifest {some(manifest.labels)}"


def _of_weights(run: Run, manifest: Manifest) -> Iterator[str]:
    """A checkpoint is proved by the golden answers, unless they were exchanged together with it."""
    names = (CHECKPOINT, GOLDEN)
    if all(run.path(name).is_file() and manifest.files.get(name, "") for name in names) and not any(
        sha256_of(run.path(name)) == manifest.files[name] for name in names
    ):
        yield f"{CHECKPOINT} and {GOLDEN} are both not the ones that the manifest lists (another sha256)"


def _of_answers(run: Run, manifest: Manifest, validation: Sequence[LabelledImage]) -> Iterator[str]:
    """The answers of training, by the labels of now, must have the accuracy of then."""
    then, answers = manifest.metrics.get("validation_accuracy"), Golden.of(run).validation_answers
    if then is None or not validation or len(answers) != len(validation):
        return
    now = metrics.accuracy(answers, np.asarray(targets_of(validation, manifest.labels)))
    if abs(now - then) > _ROUNDING:
        yield (
            f"{GOLDEN} and {SPLIT} give a validation accuracy of {now:.1%}, and the manifest says that {then:.1%} was "
            "measured"
        )
