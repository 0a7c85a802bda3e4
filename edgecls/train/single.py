"""One data set to one complete run folder: decode, train in phases, measure the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import lightning as L
import numpy as np
import torch

from edgecls import images
from edgecls.datasets import SPLITS, Dataset, Split, stratified_sample, write_split
from edgecls.errors import ImageError, OptionError, RunError, TrainingError
from edgecls.image_header import read_header
from edgecls.manifest import Manifest, Preprocessing
from edgecls.options import flat
from edgecls.runs import (
    CHECKPOINT,
    METRICS,
    OPTIONS,
    RESUME,
    SPLIT,
    Run,
    find_run,
    read_json,
    write_json,
)
from edgecls.train.batches import Inputs
from edgecls.train.checkpoint import load_checkpoint
from edgecls.train.features import features_of
from edgecls.train.loggers import make_loggers
from edgecls.train.loop import LoopOptions
from edgecls.train.losses import Teacher
from edgecls.train.machine import rank, resolved_device
from edgecls.train.measure import measure
from edgecls.train.models import PixelClassifier, build
from edgecls.train.options import SCRATCH, NetworkOptions, TrainOptions
from edgecls.train.phases import Features, Phases
from edgecls.train.pixels import Decoder
from edgecls.train.recipes import recipe_of
from edgecls.train.recorder import Epoch, Recorder
from edgecls.train.scratch import Airbench

_WHITENING_IMAGES: Final = 5000


@dataclass(frozen=True)
class Listener:
    """Who hears of a training as it goes.

    Attributes:
        say: called with lines about what was found and chosen.
        on_epoch: called after every epoch.
        progress: show a progress bar on standard error.
    """

    say: Callable[[str], None] = lambda line: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    progress: bool = False


@dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        dataset: images by split.
        classifier: untrained, or a trained one that is to learn more.
        preprocessing: how pictures become its input.
        network: what the classifier is rebuilt from.
    """

    dataset: Dataset
    classifier: PixelClassifier
    preprocessing: Preprocessing
    network: NetworkOptions


@dataclass(frozen=True)
class TrainResult:
    """What `train` made and measured; accuracies, precision and recall are fractions.

    Attributes:
        run: the run folder.
        validation_accuracy: of the best checkpoint, in float32.
        test_accuracy: the same on the test split; None where the data has none.
        figures: all that was measured, as `metrics.json` has it.
        best_epoch, n_epochs: 0 where no network was trained.
        unreadable: reason by path of the images that were left out.
    """

    run: Path
    validation_accuracy: float
    n_validation: int
    test_accuracy: float | None
    n_test: int
    n_train: int
    n_parameters: int
    best_epoch: int
    n_epochs: int
    seconds: float
    unreadable: dict[str, str]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[Run, ...]:
        return (Run(self.run),)

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "figures"}
        return {**self.figures, **values, "run": str(self.run)}


def read_result(run: Run) -> TrainResult:
    """What `train` returned for a run that has ended.

    Raises:
        RunError: damaged.
    """
    figures = read_json(run.path(METRICS))
    try:
        values = {each.name: figures.pop(each.name) for each in fields(TrainResult) if each.name != "figures"}
    except KeyError as error:
        raise RunError(f"{run.path(METRICS)}: no {error} in it; the run is damaged") from error
    return TrainResult(**{**values, "run": run.folder}, figures=figures)


def start_of(options: TrainOptions, dataset: Dataset) -> Start:
    """A network with a fresh head for the labels of a data set.

    Raises:
        OptionError, MissingExtra, TrainingError: as `models.build` says.
    """
    classifier, preprocessing = build(options.network, len(dataset.labels), _size_hw(options, dataset))
    return Start(dataset, classifier, preprocessing, options.network)


def train_single(
    options: TrainOptions, start: Start, folder: Path, listener: Listener, *,
    decoder: Decoder | None = None, features: Features = features_of,
) -> TrainResult:  # fmt: skip
    """Train one classifier in a folder, and leave a complete run there.

    Where the folder holds what a killed run left, training goes on from there. Of several processes that train
    together, the first one writes.

    Args:
        decoder: of images to pixels; None decodes the images of this data set.
        features: computes the features of a frozen backbone.

    Raises:
        OptionError, DatasetError, TrainingError, RunError: with what to do next.
    """
    started, is_leader, run = time.perf_counter(), rank() == 0, Run(folder)
    classifier, preprocessing = start.classifier, start.preprocessing
    recipe = recipe_of(options, preprocessing.size_hw)
    teacher = _teacher(options, start.dataset)
    decoder = decoder or Decoder(options.data_use.cache, preprocessing)
    dataset, pixels = decoder.decode(start.dataset)
    start = replace(start, dataset=dataset)
    listener.say(described(start))
    for warning in dataset.warnings():
        listener.say(f"warning: {warning}")
    if is_leader:
        write_split(dataset, run.path(SPLIT))
        write_json(run.path(OPTIONS), flat(options))
    _whiten(classifier, pixels["train"], options.data_use.seed)
    recorder = Recorder(folder if is_leader else None, listener.on_epoch)
    loggers = make_loggers(options, folder) if is_leader else ()
    loop = LoopOptions(options.machine, folder, loggers, listener.progress)
    phases = Phases(
        classifier, dataset, pixels, options, recipe=recipe, teacher=teacher, recorder=recorder, loop=loop,
        features=features, say=listener.say,
    )  # fmt: skip
    try:
        phases.run()
    except KeyboardInterrupt:
        if recorder.best is None:
            raise TrainingError(
                f"interrupted before the first epoch ended; {folder} holds no checkpoint. Start it again with: "
                f"edgecls train --resume {folder}"
            ) from None
        listener.say(
            f"interrupted: the best epoch so far ({recorder.best.epoch}) is kept; go on with: "
            f"edgecls train --resume {folder}"
        )
    else:
        run.path(RESUME).unlink(missing_ok=True)
    if recorder.best is None:
        raise TrainingError(f"training ended before its first epoch did; {folder} holds no checkpoint")
    result = TrainResult(
        run=folder,
        validation_accuracy=recorder.best.val_accuracy,
        n_validation=len(dataset.splits["val"]),
        test_accuracy=None,
        n_test=len(dataset.splits["test"]),
        n_train=len(dataset.splits["train"]),
        n_parameters=sum(p.numel() for p in classifier.parameters()),
        best_epoch=recorder.best.epoch,
        n_epochs=len(recorder.epochs),
        seconds=0.0,
        unreadable={str(image.path): reason for image, reason in dataset.unreadable.items()},
    )
    if is_leader:
        result = complete(run, options, start, pixels, result, started)
    return result


def complete(
    run: Run, options: TrainOptions, start: Start, pixels: Mapping[Split, Inputs], result: TrainResult, started: float
) -> TrainResult:
    """Measure what was trained, and leave a complete run folder: manifest, figures, golden answers.

    Args:
        result: as it is known before it was measured.
        started: when the training was, by `time.perf_counter`.
    """
    dataset = start.dataset
    training = {
        **flat(replace(options, network=start.network)),
        "weights": start.network.resolved_weights,
        "data": str(options.data.absolute()),
        "n_images": {split: len(dataset.splits[split]) for split in SPLITS},
        "n_unreadable": len(dataset.unreadable),
        "torch": torch.__version__,
        "checkpoint": CHECKPOINT,
    }
    manifest = Manifest(dataset.labels, start.preprocessing, start.network.model, training=training)
    run.record(manifest)
    measured = measure(run, dataset, pixels, resolved_device(options.machine))
    result = replace(
        result,
        validation_accuracy=measured.figures["validation_accuracy"],
        test_accuracy=measured.figures.get("test_accuracy"),
        seconds=time.perf_counter() - started,
        figures=measured.figures,
    )
    write_json(run.path(METRICS), result.to_json())
    run.record(replace(manifest, metrics={**measured.scalars(), "parameters": result.n_parameters}))
    return result


def _size_hw(options: TrainOptions, dataset: Dataset) -> tuple[int, int] | None:
    network = options.network
    if network.image_size:
        return network.image_size, network.image_size
    if network.model not in SCRATCH:
        return None
    sides = []
    for image in stratified_sample(dataset.splits["train"], 100, options.data_use.seed):
        try:
            header = read_header(images.read(image.path))
        except ImageError:
            continue  # reported when all images are decoded
        sides.append(min(header.height, header.width))
    side = min(max(round(float(np.median(sides)) / 8) * 8, 32), 128) if sides else 128
    return side, side


def described(start: Start) -> str:
    """One line about the images and the network."""
    dataset = start.dataset
    counts = ", ".join(f"{len(dataset.splits[split]):,} {split}" for split in SPLITS if dataset.splits[split])
    height, width = start.preprocessing.size_hw
    n_parameters = sum(p.numel() for p in start.classifier.parameters())
    return (
        f"{len(dataset.labels)} classes, {counts} images; {start.network.model} at {height} x {width} px, "
        f"{n_parameters / 1e6:.2f} M parameters, weights: {start.network.resolved_weights}"
    )


def _teacher(options: TrainOptions, dataset: Dataset) -> Teacher | None:
    """The classifier whose answers are learnt.

    Raises:
        OptionError: it knows other classes, or all epochs are those of the head on cached features.
    """
    source = options.source
    if not source.teacher:
        return None
    run = find_run(source.teacher)
    labels = run.manifest.labels
    if labels != dataset.labels:
        differing = sorted(set(labels) ^ set(dataset.labels)) or ["their order"]
        raise OptionError(
            f"--teacher {source.teacher}: it was trained on other classes (they differ in {', '.join(differing[:5])}); "
            "a teacher must know exactly the classes of the data"
        )
    if options.transfer.freeze_epochs == options.recipe.epochs:
        raise OptionError(
            "--teacher with all epochs frozen: a teacher sees the pictures of the other epochs; use fewer "
            "--freeze-epochs than --epochs"
        )
    return Teacher(load_checkpoint(run), run.manifest.preprocessing.size_hw)


def _whiten(classifier: PixelClassifier, pixels: Inputs, seed: int) -> None:
    """Set a first layer that whitens, where the network has one without trained weights, by the training images."""
    backbone = classifier.backbone
    if not isinstance(backbone, Airbench) or backbone.is_whitened:
        return
    rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:_WHITENING_IMAGES]
    backbone.initialise_whitening(classifier.normalised(pixels[rows]))


def seed_all(options: TrainOptions) -> None:
    """Seed every generator: new weights are drawn from them."""
    L.seed_everything(options.data_use.seed, verbose=False)
