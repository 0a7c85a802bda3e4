"""One data set to one complete run folder: decode, train in phases, measure the best checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import lightning as L
import torch

from edgecls.datasets import Dataset, write_split
from edgecls.errors import Interrupted, OptionError, TrainingError
from edgecls.runs import RESUME, SPLIT, Run, find_run
from edgecls.train.batches import Inputs
from edgecls.train.checkpoint import load_checkpoint
from edgecls.train.features import Features, features_of
from edgecls.train.loggers import make_loggers
from edgecls.train.loop import LoopOptions
from edgecls.train.losses import Teacher
from edgecls.train.machine import rank
from edgecls.train.models import PixelClassifier
from edgecls.train.options import TrainOptions
from edgecls.train.phases import Phases
from edgecls.train.pixels import Decoder, decoding_warnings
from edgecls.train.recipes import recipe_of
from edgecls.train.recorder import Epoch, Recorder
from edgecls.train.result import TrainResult, complete, unmeasured
from edgecls.train.scratch import Airbench
from edgecls.train.start import Start, described

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


def train_single(
    options: TrainOptions, start: Start, folder: Path, listener: Listener, *,
    resumed_by: Path | None = None, decoder: Decoder | None = None, features: Features = features_of,
) -> TrainResult:  # fmt: skip
    """Train one classifier in a folder, and leave a complete run there.

    Where the folder holds what a killed run left, training goes on from there. Of several processes that train
    together, the first one writes.

    Args:
        resumed_by: the folder that `--resume` names; None is this one.
        decoder: of images to pixels; None decodes the images of this data set.
        features: computes the features of a frozen backbone.

    Raises:
        OptionError, DatasetError, TrainingError, RunError: with what to do next.
    """
    started, is_leader, run = time.perf_counter(), rank() == 0, Run(folder)
    classifier, preprocessing = start.classifier, start.preprocessing
    recipe = recipe_of(options, preprocessing.size_hw, classifier.backbone)
    teacher = _teacher(options, start.dataset)
    decoder = decoder or Decoder(options.data_use.cache, preprocessing)
    dataset, pixels = decoder.decode(start.dataset)
    start = replace(start, dataset=dataset)
    listener.say(described(start))
    for warning in (*decoding_warnings(options.data_use.cache, pixels["train"]), *dataset.warnings()):
        listener.say(f"warning: {warning}")
    if is_leader:
        write_split(dataset, run.path(SPLIT))
    _whiten(classifier, pixels["train"], options.data_use.seed)
    recorder = Recorder(folder if is_leader else None, listener.on_epoch)
    loggers = make_loggers(options, folder) if is_leader else ()
    loop = LoopOptions(options.machine, folder, loggers, listener.progress)
    phases = Phases(
        classifier, dataset, pixels, options, recipe=recipe, teacher=teacher, recorder=recorder, loop=loop,
        features=features, say=listener.say,
    )  # fmt: skip
    go_on = f"edgecls train --resume {resumed_by or folder}"
    try:
        phases.run()
    except KeyboardInterrupt:
        if recorder.best is None:
            raise Interrupted(
                f"interrupted before the first epoch ended; {folder} holds no checkpoint. Start it again with: {go_on}"
            ) from None
        listener.say(f"interrupted: the best epoch so far ({recorder.best.epoch}) is kept; go on with: {go_on}")
    else:
        run.path(RESUME).unlink(missing_ok=True)
    if recorder.best is None:
        raise TrainingError(f"training ended before its first epoch did; {folder} holds no checkpoint")
    if not is_leader:
        return unmeasured(folder, start, recorder)
    return complete(run, options, start, pixels, recorder, started)


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
