"""Stratified cross-validation: a run for every fold, what they agree on, and the ensemble of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecls import metrics
from edgecls.datasets import Dataset, LabelledImage, Split, stratified_folds
from edgecls.errors import Interrupted
from edgecls.runs import ENSEMBLE, METRICS, RESUME, Run, write_json
from edgecls.train.data.batches import Inputs
from edgecls.train.data.pixels import Decoder, decoding_warnings
from edgecls.train.kinds.classical_run import classical_start, train_classical
from edgecls.train.kinds.result import TrainResult, is_complete, read_result
from edgecls.train.kinds.single import seed_all, train_single
from edgecls.train.kinds.start import start_of
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of
from edgecls.train.networks.features import features_of
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener

FOLD: Final = "fold-{}"


@dataclass(frozen=True)
class Subset:
    """Some rows of inputs that several trainings share.

    Attributes:
        whole: pixels of all images.
        rows: (k,) int64.
    """

    whole: Inputs
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.whole[self.rows[rows]]


class _SharedDecoder(Decoder):
    """Decodes all images once; every fold takes its rows."""

    def __init__(self, decoder: Decoder, dataset: Dataset) -> None:
        super().__init__(decoder.cache, decoder.preprocessing)
        self.dataset, pixels = decoder.decode(dataset)
        self._pixels = {split: pixels[split] for split in ("train", "test")}
        self._row = {image: row for row, image in enumerate(self.dataset.splits["train"])}

    @property
    def train_pixels(self) -> Inputs:
        """Of all images that are dealt out."""
        return self._pixels["train"]

    @property
    def test_pixels(self) -> Inputs:
        return self._pixels["test"]

    def decode(self, dataset: Dataset) -> tuple[Dataset, dict[Split, Inputs]]:
        def rows(split: Split) -> Tensor:
            return torch.tensor([self._row[image] for image in dataset.splits[split]], dtype=torch.int64)

        whole = self._pixels["train"]
        return dataset, {
            "train": Subset(whole, rows("train")), "val": Subset(whole, rows("val")), "test": self._pixels["test"],
        }  # fmt: skip


class _SharedFeatures:
    """Features of all images, computed once: every fold begins with the same frozen backbone."""

    def __init__(self, listener: Listener) -> None:
        self._features: Tensor | None = None
        self._listener = listener

    def __call__(self, classifier: PixelClassifier, inputs: Inputs) -> Tensor:
        if not isinstance(inputs, Subset):  # the test images, which all folds have in full
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
    started = time.perf_counter()
    pool = (*dataset.splits["train"], *dataset.splits["val"])
    stratified_folds(pool, options.data_use.folds, options.data_use.seed)  # refuse before anything is decoded
    splits: dict[Split, tuple[LabelledImage, ...]]
    splits = {"train": pool, "val": dataset.splits["val"], "test": dataset.splits["test"]}
    everything = replace(dataset, splits=splits)  # a data set must have a val split; each fold brings its own
    seed_all(options)
    begin = classical_start if options.source.classifier else start_of
    start = begin(options, everything)
    own = Decoder(options.data_use.cache, start.preprocessing, listener.on_progress)
    decoder = _SharedDecoder(own, everything)
    if dataset.has_own_validation:
        listener.say(
            f"--folds: the {len(dataset.splits['val']):,} images of the data's own val split are dealt out with those "
            "of train; each fold validates on what it holds out"
        )
    for warning in decoding_warnings(options.data_use.cache, decoder.train_pixels):
        listener.say(f"warning: {warning}")
    folds = stratified_folds(decoder.dataset.splits["train"], options.data_use.folds, options.data_use.seed)
    single = replace(options, data_use=replace(options.data_use, folds=0), out=None)
    features, results = _SharedFeatures(listener), []
    names = [FOLD.format(number) for number in range(1, len(folds) + 1)]
    for number, (name, held_out) in enumerate(zip(names, folds, strict=True)):
        listener.say(f"{name} of {len(folds)}")
        seed_all(options)  # the same new weights in every fold: they differ by their images alone
        part = _without(decoder.dataset, held_out)
        if is_complete(Run(folder / name)):
            results.append(read_result(Run(folder / name)))
            continue
        fold = replace(begin(single, part), preprocessing=start.preprocessing)
        if options.source.classifier:
            result = train_classical(single, fold, folder / name, listener, decoder=decoder, features=features)
        else:
            now = time.perf_counter()
            until = None if deadline is None else now + (deadline - now) / (len(folds) - number)
            result = train_single(
                single, fold, folder / name, listener, resumed_by=folder, decoder=decoder, features=features,
                deadline=until,
            )  # fmt: skip
        if result.is_interrupted:
            raise Interrupted(f"interrupted in {name}; go on with: edgecls train --resume {folder}")
        (folder / name / RESUME).unlink(missing_ok=True)
        results.append(result)
    test = _ensemble_accuracy([folder / name for name in names], decoder.dataset, decoder.test_pixels)
    write_json(folder / ENSEMBLE, {"members": names})
    crossed = FoldsResult(folder, tuple(results), test, time.perf_counter() - started)
    write_json(folder / METRICS, crossed.to_json())
    return crossed


def _without(dataset: Dataset, held_out: list[LabelledImage]) -> Dataset:
    excluded = set(held_out)
    train = tuple(image for image in dataset.splits["train"] if image not in excluded)
    splits: dict[Split, tuple[LabelledImage, ...]]
    splits = {"train": train, "val": tuple(held_out), "test": dataset.splits["test"]}
    return replace(dataset, splits=splits)


def _ensemble_accuracy(runs: list[Path], dataset: Dataset, pixels: Inputs) -> float | None:
    truth = dataset.targets("test")
    if not len(truth):
        return None
    total: NDArray[np.float32] = np.zeros((len(truth), len(dataset.labels)), np.float32)
    for run in runs:
        total += metrics.softmax(logits_of(load_checkpoint(Run(run)), pixels).numpy())
    return metrics.accuracy(total.argmax(1), truth)
