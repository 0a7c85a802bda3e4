"""Which labels a model doubts that has not learnt from them, by confident learning (package cleanlab)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues

from edgecls.datasets import read_split
from edgecls.errors import DatasetError
from edgecls.evaluate.look.facts import Facts
from edgecls.evaluate.look.inspect import Doubt
from edgecls.progress import Progress
from edgecls.runs import SPLIT, Run, find_run, members_of
from edgecls.runtime.classifier import Classifier
from edgecls.runtime.options import ClassifierOptions
from edgecls.runtime.pipeline import Source


def doubting(model: str, progress: Progress) -> Callable[[Sequence[Facts]], tuple[Doubt, ...]]:
    """`doubts_of` with the runs found: a name with a typo is told before every picture is looked at.

    Raises:
        RunError: no such run.
    """
    runs = [find_run(member) for member in members_of(model)]
    return lambda facts: doubts_of(runs, facts, progress)


def doubts_of(runs: Sequence[Run], facts: Sequence[Facts], progress: Progress) -> tuple[Doubt, ...]:
    """Answer the images that a run, or each fold of an ensemble, has not learnt from; the most doubtful labels first.

    Source: C. Northcutt et al., "Confident Learning", arXiv 1911.00068.

    Raises:
        DatasetError: they were trained on other data.
    """
    known = {each.listed.image.path for each in facts}
    paths: list[Path] = []
    truth: list[int] = []
    rows: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = []
    labels: tuple[str, ...] = ()
    for run in runs:
        labels = labels or run.manifest.labels
        held_out = [each for each in read_split(run.path(SPLIT), labels).splits["val"] if each.path in known]
        progress.on_pass(f"labels, by {run.folder.name}", len(held_out))
        with Classifier.of([run.folder], ClassifierOptions()) as classifier:
            sources = [Source(str(each.path), str(each.path), each.label) for each in held_out]
            for answered in classifier.answers(sources, n_sources=len(sources)):
                mean = classifier.voting.mean(classifier.probabilities(answered))
                read = [each for each, why in zip(answered.sources, answered.reasons, strict=True) if not why]
                paths += [Path(each.name) for each in read]
                truth += [labels.index(each.truth or "") for each in read]
                rows += list(mean)
                progress.on_images(len(answered.sources))
    if not rows:
        raise DatasetError(
            f"{runs[0].folder}: none of its validation images lies in this data; name a run of this data"
        )
    probabilities = np.stack(rows)
    doubtful = find_label_issues(
        np.array(truth), probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
    ).tolist()
    return tuple(
        Doubt(
            paths[row],
            labels[truth[row]],
            labels[int(probabilities[row].argmax())],
            float(probabilities[row].max()),
            float(probabilities[row, truth[row]]),
        )
        for row in doubtful
    )
