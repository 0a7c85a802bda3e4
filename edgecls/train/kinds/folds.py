"""Stratified cross-validation: a run for every fold, what they agree on, and the ensemble of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edgecls import metrics
from edgecls.datasets import Dataset
from edgecls.errors import Interrupted
from edgecls.labelled import LabelledImage, Split, stratified_folds
from edgecls.manifest import Preprocessing
from edgecls.runs import ENSEMBLE, METRICS, RESUME, Run, write_json
from edgecls.train.data.batches import Inputs
from edgecls.train.data.pixels import Decoded, Rows, decode, decoding_warnings
from edgecls.train.kinds.classical_run import classical_start, train_classical
from edgecls.train.kinds.result import TrainResult, is_complete, read_result
from edgecls.train.kinds.single import seed_all, train_single
from edgecls.train.kinds.start import Start, start_of
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of
from edgecls.train.networks.features import features_of
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener

FOLD: Final = "fold-{}"


class _SharedFeatures:
    """Features of all images, computed once: every fold begins with the same frozen backbone."""

    def __init__(self, listener: Listener) -> None:
        self._features: Tensor | None = None
        self._listener = listener

    def __call__(self, classifier: PixelClassifier, inputs: Inputs) -> Tensor:
        if not isinstance(inputs, Rows):  # the test images, which all folds have in full
            return features_of(classifier, inputs)
        if self._features is None:
            self._features = features_of(classifier, inputs.whole, on_progress=self._listener.on_progress)
        return self._features[inputs.rows]


@dataclass(frozen=True)
class FoldsResult:
    """What cross-validation measured; accuracies are fractions.

    Attributes:
        run: the folder of the ensemble; each fold's run is below it.
        folds: one result each; `validation_accuracy` is that of the images which the fold did not train on.
        test_accuracy: of the ensemble's mean probabilities on the test split; None where the data has none.
    """

    run: Path
    folds: tuple[TrainResult, ...]
    test_accuracy: float | None
    seconds: float
    is_interrupted: ClassVar[bool] = False  # of folds that were stopped there is no result

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(Run(fold.run) for fold in self.folds)

    @property
    def unreadable(self) -> dict[str, str]:
        return self.folds[0].unreadable

    @property
    def mean(self) -> float:
        return float(np.mean([fold.validation_accuracy for fold in self.folds]))

    @property
    def sd(self) -> float:
        """Standard deviation over the folds (n - 1)."""
        return float(np.std([fold.validation_accuracy for fold in self.folds], ddof=1))

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run), "validation_accuracy": self.mean, "validation_sd": self.sd,
            "test_accuracy": self.test_accuracy, "seconds": self.seconds,
            "folds": [fold.to_json() for fold in self.folds],
        }  # fmt: skip


def train_folds(
    options: TrainOptions, dataset: Dataset, folder: Path, listener: Listener, deadline: float | None = None
) -> FoldsResult:
    """Train `--folds` models, each on all folds but one, and judge it on that one.

    The images of the train and the val split are dealt out; the test split is answered by the finished models only.
    Folds that a killed run has finished are not trained again. A time is dealt out to the folds that are left.

    Raises:
        DatasetError: a class has fewer images than there are folds.
        Interrupted: the user stopped it; what is finished is kept.
    """
    started, use = time.perf_counter(), options.data_use
    # a data set must have a val split: it keeps its own, and each fold brings another
    pool = (*dataset.splits["train"], *dataset.splits["val"])
    everything = replace(dataset, splits={**dataset.splits, "train": pool})
    stratified_folds(pool, use.folds, use.seed)  # refuse before anything is decoded
    seed_all(options)
    preprocessing = _start_of(options, everything).preprocessing
    decoded = decode(everything, preprocessing, use.cache, listener)
    if dataset.has_own_validation:
        listener.say(
            f"--folds: the {len(dataset.splits['val']):,} images of the data's own val split are dealt out with those "
            "of train; each fold validates on what it holds out"
        )
    for warning in decoding_warnings(use.cache, decoded.pixels["train"]):
        listener.say(f"warning: {warning}")
    folds = stratified_folds(decoded.dataset.splits["train"], use.folds, use.seed)
    one = _Fold(replace(options, data_use=replace(use, folds=0), out=None), preprocessing, folder, listener)
    names = [FOLD.format(number) for number in range(1, len(folds) + 1)]
    results = []
    for number, (name, held_out) in enumerate(zip(names, folds, strict=True)):
        listener.say(f"{name} of {len(folds)}")
        now = time.perf_counter()
        until = None if deadline is None else now + (deadline - now) / (len(folds) - number)
        results.append(one.train(name, decoded.dealt(_without(decoded.dataset, held_out)), until))
    test = _ensemble_accuracy([folder / name for name in names], decoded)
    write_json(folder / ENSEMBLE, {"members": names})
    crossed = FoldsResult(folder, tuple(results), test, time.perf_counter() - started)
    write_json(folder / METRICS, crossed.to_json())
    return crossed


def _start_of(options: TrainOptions, dataset: Dataset) -> Start:
    return classical_start(options, dataset) if options.is_classical else start_of(options, dataset)


class _Fold:
    """What the trainings of all folds share, the features of a frozen backbone above all."""

    def __init__(self, options: TrainOptions, preprocessing: Preprocessing, folder: Path, listener: Listener) -> None:
        self._options, self._preprocessing, self._folder, self._listener = options, preprocessing, folder, listener
        self._features = _SharedFeatures(listener)

    def train(self, name: str, part: Decoded, deadline: float | None) -> TrainResult:
        """Train one fold, unless a killed run has finished it."""
        options, run = self._options, Run(self._folder / name)
        seed_all(options)  # the same new weights in every fold: they differ by their images alone
        if is_complete(run):
            return read_result(run)
        start = replace(_start_of(options, part.dataset), preprocessing=self._preprocessing)
        if options.is_classical:
            result = train_classical(options, start, part, run.folder, self._listener, self._features)
        else:
            result = train_single(
                options, start, part, run.folder, self._listener, resumed_by=self._folder, features=self._features,
                deadline=deadline,
            )  # fmt: skip
        if result.is_interrupted:
            raise Interrupted(f"interrupted in {name}; go on with: edgecls train --resume {self._folder}")
        run.path(RESUME).unlink(missing_ok=True)
        return result


def _without(dataset: Dataset, held_out: list[LabelledImage]) -> Dataset:
    excluded = set(held_out)
    train = tuple(image for image in dataset.splits["train"] if image not in excluded)
    splits: dict[Split, tuple[LabelledImage, ...]]
    splits = {"train": train, "val": tuple(held_out), "test": dataset.splits["test"]}
    return replace(dataset, splits=splits)


def _ensemble_accuracy(runs: list[Path], decoded: Decoded) -> float | None:
    truth = decoded.dataset.targets("test")
    if not len(truth):
        return None
    total: NDArray[np.float32] = np.zeros((len(truth), len(decoded.dataset.labels)), np.float32)
    for run in runs:
        total += metrics.softmax(logits_of(load_checkpoint(Run(run)), decoded.pixels["test"]).numpy())
    return metrics.accuracy(total.argmax(1), truth)
