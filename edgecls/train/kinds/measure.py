"""What the best checkpoint, read back from disk, answers: figures for metrics.json, golden answers for exports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

from edgecls import metrics
from edgecls.golden import N_GOLDEN, Golden
from edgecls.labelled import Split, stratified_sample
from edgecls.runs import Run
from edgecls.train.data.pixels import Decoded
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of

_MEASURED: Final[dict[Split, str]] = {"val": "validation", "test": "test"}  # splits, and their names in metrics.json


@dataclass(frozen=True)
class Measured:
    """Figures by name, and the answers that they were taken from.

    Attributes:
        figures: what `metrics.json` says; accuracies, precision and recall are fractions.
        answers: (n,) int64 label index for every image of a split.
    """

    figures: dict[str, Any]
    answers: dict[Split, NDArray[np.int64]]

    def scalars(self) -> dict[str, float]:
        """The figures that the manifest keeps."""
        return {name: value for name, value in self.figures.items() if isinstance(value, float)}


def macro_scores(answers: NDArray[np.int64], truth: NDArray[np.int64]) -> tuple[float, float, float]:
    """Precision, recall and F1 as means over the classes: a rare one counts as much as a common one.

    Of a class without images nothing can be said, so it does not count.

    Args:
        answers, truth: (n,) label indices, n >= 1.
    """
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, answers, labels=np.unique(truth), average="macro", zero_division=0
    )
    return float(precision), float(recall), float(f1)


def measure(run: Run, decoded: Decoded, device: str) -> Measured:
    """Answer the validation and test images once, in float32; leave golden answers in the run.

    Raises:
        RunError: the run has no checkpoint that loads.
    """
    dataset, pixels = decoded.dataset, decoded.pixels
    classifier = load_checkpoint(run).to(device)
    figures: dict[str, Any] = {}
    answers: dict[Split, NDArray[np.int64]] = {}
    for split, name in _MEASURED.items():
        truth = dataset.targets(split)
        if not len(truth):
            continue
        logits = logits_of(classifier, pixels[split])
        answers[split] = logits.argmax(1).numpy()
        share = metrics.accuracy(answers[split], truth)
        precision, recall, f1 = macro_scores(answers[split], truth)
        figures[f"{name}_accuracy"] = share
        figures[f"{name}_interval"] = metrics.wilson_interval(share, len(truth))
        figures[f"{name}_loss"] = float(F.cross_entropy(logits, torch.from_numpy(truth)))
        figures[f"{name}_precision"] = precision
        figures[f"{name}_recall"] = recall
        figures[f"{name}_f1"] = f1
        figures[f"{name}_confusion"] = metrics.confusion_matrix(answers[split], truth, len(dataset.labels)).tolist()
    figures["labels"] = list(dataset.labels)
    chosen = set(stratified_sample(dataset.splits["val"], N_GOLDEN, 0))
    rows = [row for row, image in enumerate(dataset.splits["val"]) if image in chosen]
    golden = pixels["val"][torch.tensor(rows)]
    # on the CPU in float32, whatever trained it
    Golden(golden.numpy(), logits_of(classifier.cpu(), golden).numpy(), answers["val"]).write(run)
    return Measured(figures, answers)
