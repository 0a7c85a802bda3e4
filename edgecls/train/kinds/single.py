"""One data set to one complete run folder: decode, train in phases, measure the best checkpoint."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import lightning as L
import torch

from edgecls.datasets import Dataset, write_split
from edgecls.errors import Interrupted, OptionError, RunError, TrainingError
from edgecls.names import one_form
from edgecls.runs import CONTACT_SHEET, SPLIT, Run, find_run
from edgecls.train.data.batches import Inputs
from edgecls.train.data.contact_sheet import write_contact_sheet
from edgecls.train.data.pixels import Decoded, decoding_warnings
from edgecls.train.fit.loggers import make_loggers
from edgecls.train.fit.loop import LoopOptions
from edgecls.train.fit.losses import Teacher
from edgecls.train.fit.phases import Phases
from edgecls.train.fit.recipes import Recipe, chosen, recipe_of, repeating
from edgecls.train.fit.recorder import Recorder
from edgecls.train.kinds.record import Stopwatch, write_recipe
from edgecls.train.kinds.result import TrainResult, complete, unmeasured
from edgecls.train.kinds.start import Start, described
from edgecls.train.machine import rank
from edgecls.train.networks.checkpoint import load_proved_checkpoint
from edgecls.train.networks.features import Features, features_of
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.networks.scratch import Airbench
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener

_WHITENING_IMAGES: Final = 5000


def train_single(
    options: TrainOptions, start: Start, decoded: Decoded, folder: Path, listener: Listener, *,
    resumed_by: Path | None = None, features: Features | None = None, deadline: float | None = None,
) -> TrainResult:  # fmt: skip
    """Train one classifier in a folder, and leave a complete run there.

    Where the folder holds what a killed run left, training goes on from there. What it goes on from stays in the
    folder: whoever called removes it when all is done. Of several processes that train together, the first one writes.

    Args:
        decoded: the images of the start.
        resumed_by: the folder that `--resume` names; None is this one.
        features: computes the features of a frozen backbone.
        deadline: when the run should be complete, by `time.perf_counter`; None where nobody waits.

    Raises:
        OptionError, DatasetError, TrainingError, RunError: with what to do next.
    """
    clock, is_leader = Stopwatch(decoded), rank() == 0
    start = replace(start, dataset=decoded.dataset)
    recipe = recipe_of(options, start.survey, start.preprocessing, start.classifier.backbone)
    teacher = _teacher(options, recipe, start.dataset)
    listener.say(described(start))
    listener.say(chosen(recipe, start.survey))
    for warning in (*decoding_warnings(options.data_use.cache, decoded.pixels["train"]), *start.dataset.warnings()):
        listener.say(f"warning: {warning}")

    def record(recipe: Recipe) -> None:
        if is_leader:
            write_recipe(folder, repeating(recipe, options), clock.laps)

    record(recipe)
    if is_leader:
        write_split(start.dataset, folder / SPLIT)
        write_contact_sheet(folder / CONTACT_SHEET, start.dataset, decoded.pixels["train"], recipe.augmentation)
    _whiten(start.classifier, decoded.pixels["train"], options.data_use.seed)
    recorder = Recorder(folder if is_leader else None, listener.on_epoch, recipe.monitor)
    loggers = make_loggers(repeating(recipe, options), folder) if is_leader else ()
    phases = Phases(
        start.classifier, decoded, recipe, teacher=teacher, recorder=recorder,
        loop=LoopOptions(options.machine, folder, loggers, listener.on_progress),
        features=features or partial(features_of, on_progress=listener.on_progress),
        say=listener.say, record=record, deadline=deadline,
    )  # fmt: skip
    is_interrupted = _run(phases, folder, f"edgecls train --resume {resumed_by or folder}")
    clock.lap("train")
    if not is_leader:
        return replace(unmeasured(folder, start, recorder), is_interrupted=is_interrupted)
    clock.laps.update(phases.seconds)
    result = complete(Run(folder), repeating(phases.recipe, options), start, decoded, recorder, clock, listener)
    return replace(result, is_interrupted=is_interrupted)


def _run(phases: Phases, folder: Path, go_on: str) -> bool:
    """Train, and return whether the user has interrupted it; what is written is the best epoch so far.

    Args:
        go_on: the command that continues a training which ended early.
    """
    recorder = phases.recorder
    is_interrupted = False
    try:
        phases.run()
    except KeyboardInterrupt:
        if recorder.best is None:
            raise Interrupted(
                f"interrupted before the first epoch ended; {folder} holds no checkpoint. Start it again with: {go_on}"
            ) from None
        phases.say(f"interrupted: the best epoch so far ({recorder.best.epoch}) is kept; go on with: {go_on}")
        is_interrupted = True
    except RunError as error:
        if not recorder.epochs:
            raise
        raise RunError(f"{error}. The best epoch so far is kept; when that is mended, go on with: {go_on}") from error
    if recorder.best is None:
        raise TrainingError(f"training ended before its first epoch did; {folder} holds no checkpoint")
    return is_interrupted


def _teacher(options: TrainOptions, recipe: Recipe, dataset: Dataset) -> Teacher | None:
    """The classifier whose answers are learnt.

    Raises:
        OptionError: it knows other classes, or all epochs are those of the head on cached features.
    """
    source = options.source
    if not source.teacher:
        return None
    run = find_run(source.teacher)
    labels = run.manifest.labels
    if tuple(map(one_form, labels)) != dataset.labels:
        differing = sorted(set(labels) ^ set(dataset.labels)) or ["their order"]
        raise OptionError(
            f"--teacher {source.teacher}: it was trained on other classes (they differ in {', '.join(differing[:5])}); "
            "a teacher must know exactly the classes of the data"
        )
    if not recipe.rest:
        raise OptionError(
            "--teacher with all epochs frozen: a teacher sees the pictures of the other epochs; use fewer "
            "--freeze-epochs than --epochs"
        )
    return Teacher(load_proved_checkpoint(run), run.manifest.preprocessing.size_hw)


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
