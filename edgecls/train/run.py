"""The command: which kind of training the options ask for, in which folder, and how a killed one goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgecls.datasets import SPLITS, Dataset, open_dataset, read_split
from edgecls.errors import EdgeclsError, RunError
from edgecls.options import flat, from_flat, read_flat
from edgecls.runs import (
    METRICS,
    OPTIONS,
    RESUME,
    SPLIT,
    create_run_folder,
    find_model,
    find_run,
    point_latest_at,
    write_json,
)
from edgecls.train.classical_run import classical_start, train_classical
from edgecls.train.extend import train_extended
from edgecls.train.folds import FoldsResult, train_folds
from edgecls.train.machine import keep_freed_memory, rank
from edgecls.train.options import TrainOptions
from edgecls.train.result import TrainResult
from edgecls.train.single import Listener, seed_all, train_single
from edgecls.train.start import start_of


def train(options: TrainOptions, listener: Listener = Listener()) -> TrainResult | FoldsResult:
    """Train a classifier (with `--folds`, one for each fold) and leave a complete run folder.

    Raises:
        OptionError, DatasetError, TrainingError, MissingExtra, RunError: with what to do next.
    """
    keep_freed_memory()
    seed_all(options)
    dataset = _open(options)
    model = options.network.model.replace("/", "-") if not options.source.classifier else options.source.classifier
    folder = create_run_folder(model, options.out) if rank() == 0 else options.out or Path("not-the-leader")
    try:
        return _train_in(folder, options, dataset, listener)
    except EdgeclsError:
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {OPTIONS}:
            shutil.rmtree(folder)  # it was refused before anything began
        raise


def resume(name: str | Path, listener: Listener = Listener()) -> TrainResult | FoldsResult:
    """Go on with a training that was killed, to the same end as if it had not been.

    Args:
        name: its run folder, or `latest`.

    Raises:
        RunError: no such run, one that has ended, or whose images have changed since.
        OptionError, DatasetError, TrainingError, MissingExtra: as `train`.
    """
    keep_freed_memory()
    folder = find_model(name)
    if not (folder / OPTIONS).is_file():
        raise RunError(
            f"{name}: no {OPTIONS} in it, so there is nothing to resume; start anew with: edgecls train DATA"
        )
    options = from_flat(TrainOptions, read_flat(folder / OPTIONS), str(folder / OPTIONS))
    if (folder / METRICS).is_file() and not _is_unfinished(folder):
        raise RunError(f"{name}: its training has ended; to train on, use --weights {folder}/checkpoint.pt")
    seed_all(options)
    dataset = _open(options)
    if (folder / SPLIT).is_file() and not options.source.extend:
        kept = read_split(folder / SPLIT, dataset.labels)
        if any(set(kept.splits[split]) - set(dataset.splits[split]) for split in SPLITS):
            raise RunError(
                f"{name}: the images of {options.data} are no longer those that it was trained on (see {SPLIT} there); "
                "put them back, or start anew"
            )
    return _train_in(folder, options, dataset, listener)


def _open(options: TrainOptions) -> Dataset:
    for name in (options.source.extend, options.source.teacher):
        if name:
            find_run(name)  # before the images, which take a while
    use = options.data_use
    fewest = 1 if options.source.extend else 2
    return open_dataset(options.data, val_fraction=use.val_fraction, seed=use.seed, fewest_classes=fewest)


def _is_unfinished(folder: Path) -> bool:
    return (folder / RESUME).is_file()


def _train_in(folder: Path, options: TrainOptions, dataset: Dataset, listener: Listener) -> TrainResult | FoldsResult:
    is_leader = rank() == 0
    if is_leader:
        write_json(folder / OPTIONS, flat(options))
    result: TrainResult | FoldsResult
    if options.data_use.folds:
        result = train_folds(options, dataset, folder, listener)
    elif options.source.classifier:
        start = classical_start(options, dataset)
        result = train_classical(options, start, folder, listener)
    elif options.source.extend:
        result = train_extended(options, dataset, folder, listener)
    else:
        result = train_single(options, start_of(options, dataset), folder, listener)
    if is_leader:
        point_latest_at(folder)
    return result
