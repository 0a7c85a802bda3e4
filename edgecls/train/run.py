"""The command: which kind of training the options ask for, in which folder, and how a killed one goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgecls.datasets import Dataset, read_split
from edgecls.errors import EdgeclsError, OptionError, RunError
from edgecls.labelled import SPLITS
from edgecls.runs import (
    FIGURES,
    RECIPE,
    RESUME,
    SPLIT,
    UNFINISHED,
    create_run_folder,
    lock,
    point_latest_at,
    remove_leftovers,
)
from edgecls.train.data.pixels import Decoded, decode
from edgecls.train.fit.loop import check_strategy
from edgecls.train.kinds.classical_run import classical_start, train_classical
from edgecls.train.kinds.extend import train_extended
from edgecls.train.kinds.folds import FoldsResult, train_folds
from edgecls.train.kinds.record import repeatable, write_recipe
from edgecls.train.kinds.result import TrainResult
from edgecls.train.kinds.single import seed_all, train_single
from edgecls.train.kinds.start import Start, start_of
from edgecls.train.machine import keep_freed_memory, leave_the_others, rank
from edgecls.train.options import TrainOptions
from edgecls.train.preflight import open_for, options_of_run
from edgecls.train.progress import Listener

_PATIENCE: Final = 1.1  # times --minutes, before a line says that they were not kept


def train(
    options: TrainOptions,
    listener: Listener = Listener(),
    *,
    dataset: Dataset | None = None,
    started: float | None = None,
) -> TrainResult | FoldsResult:  # fmt: skip
    """Train a classifier (with `--folds`, one for each fold) and leave a complete run folder.

    Args:
        dataset: as `open_for` gives it; None opens it.
        started: when `--minutes` began, by `time.perf_counter`; None is now.

    Raises:
        OptionError, DatasetError, TrainingError, MissingExtra, RunError: with what to do next.
    """
    started = time.perf_counter() if started is None else started
    check_strategy(options.machine)
    keep_freed_memory()
    seed_all(options)
    dataset = dataset or open_for(options)
    model = options.network.model.replace("/", "-") if not options.source.classifier else options.source.classifier
    folder = create_run_folder(model, options.out) if rank() == 0 else options.out or Path("not-the-leader")
    try:
        result = _train_in(folder, options, dataset, listener, started)
    except EdgeclsError as error:
        begun = {RECIPE, UNFINISHED}
        if isinstance(error, OptionError):  # a name that only the network can tell to be wrong
            begun |= {SPLIT, Path(FIGURES).name}
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= begun:
            shutil.rmtree(folder)  # it was refused before anything was trained
        raise
    minutes, taken = options.recipe.minutes, (time.perf_counter() - started) / 60
    if minutes is not None and taken > _PATIENCE * minutes:
        listener.say(f"--minutes {minutes:g} was not kept: it took {taken:.1f} minutes")
    return result


def resume(name: str | Path, listener: Listener = Listener()) -> TrainResult | FoldsResult:
    """Go on with a training that was killed, to the same end as if it had not been.

    Args:
        name: its run folder, or `latest`.

    Raises:
        RunError: no such run, one that has ended, or whose images have changed since.
        OptionError, DatasetError, TrainingError, MissingExtra: as `train`.
    """
    keep_freed_memory()
    folder, options = options_of_run(name)
    seed_all(options)
    dataset = open_for(options)
    if (folder / SPLIT).is_file() and not options.source.extend:
        kept = read_split(folder / SPLIT, dataset.labels)
        if any(set(kept.splits[split]) - set(dataset.splits[split]) for split in SPLITS):
            raise RunError(
                f"{name}: the images of {options.data} are no longer those that it was trained on (see {SPLIT} there); "
                "put them back, or start anew"
            )
    return _train_in(folder, options, dataset, listener, time.perf_counter())


def _train_in(
    folder: Path, options: TrainOptions, dataset: Dataset, listener: Listener, started: float
) -> TrainResult | FoldsResult:
    options = repeatable(options)
    if rank() != 0:
        return _train_alone(folder, options, dataset, listener, started)
    remove_leftovers(folder)
    if not (folder / RECIPE).is_file():  # before all else, since without it nothing can be resumed
        write_recipe(folder, options)
    with _alone_in(folder):
        return _train_alone(folder, options, dataset, listener, started)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two that train in one run folder, as where one is taken for dead, would write over one another's files.

    Raises:
        RunError: another process trains in it.
    """
    try:
        file = (folder / UNFINISHED).open("a")
    except OSError as error:
        raise RunError(f"cannot write {folder / UNFINISHED}: {error.strerror or error}") from error
    with file:
        lock(file, f"{folder}: another process trains in this run folder; wait for it, or stop it")
        yield


def _train_alone(
    folder: Path, options: TrainOptions, dataset: Dataset, listener: Listener, started: float
) -> TrainResult | FoldsResult:
    minutes = options.recipe.minutes
    deadline = None if minutes is None else started + 60 * minutes
    result: TrainResult | FoldsResult
    if options.data_use.folds:
        result = train_folds(options, dataset, folder, listener, deadline)
    elif options.source.classifier:
        start = classical_start(options, dataset)
        result = train_classical(options, start, _decoded(options, start, listener), folder, listener)
    elif options.source.extend:
        result = train_extended(options, dataset, folder, listener, deadline)
    else:
        start = start_of(options, dataset)
        decoded = _decoded(options, start, listener)
        result = train_single(options, start, decoded, folder, listener, deadline=deadline)
    leave_the_others()
    if rank() == 0:
        point_latest_at(folder)
        if isinstance(result, FoldsResult) or not result.is_interrupted:
            _finish(folder)
    return result


def _decoded(options: TrainOptions, start: Start, listener: Listener) -> Decoded:
    return decode(start.dataset, start.preprocessing, options.data_use.cache, listener)


def _finish(folder: Path) -> None:
    """The training has left all of its run: what a killed one goes on from goes, the dear part of it last."""
    for name in (UNFINISHED, RESUME):
        (folder / name).unlink(missing_ok=True)
