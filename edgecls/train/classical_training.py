"""`--features RUN|MODEL --classifier NAME`: decode, fit a scikit-learn classifier on the features, measure it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from edgecls.datasets import Dataset, Split, write_split
from edgecls.errors import OptionError, RunError
from edgecls.runs import SPLIT, Run, find_model
from edgecls.train.checkpoint import load_checkpoint, network_options
from edgecls.train.classical_run import fit_head
from edgecls.train.models import build
from edgecls.train.options import IMAGENET, SCRATCH, NetworkOptions, TrainOptions
from edgecls.train.pixels import Decoder
from edgecls.train.single import Listener, Start, TrainResult, complete, described


def train_classical(options: TrainOptions, dataset: Dataset, folder: Path, listener: Listener) -> TrainResult:
    """Fit `--classifier` on the features of `--features`, and leave a complete run.

    Raises:
        OptionError: neither a run nor a model has that name, or there is nothing to learn features from.
        DatasetError, TrainingError, MissingExtra, RunError: with what to do next.
    """
    started, run, name = time.perf_counter(), Run(folder), options.source.classifier
    assert name  # whoever asked for features asked for a classifier: SourceOptions sees to it
    start = _start(options, dataset)
    readable, pixels = Decoder(options.data_use.cache, start.preprocessing).decode(start.dataset)
    listener.say(f"{described(replace(start, dataset=readable))}; {name} on its features")
    for warning in readable.warnings():
        listener.say(f"warning: {warning}")
    write_split(readable, run.path(SPLIT))
    splits: tuple[Split, ...] = ("train", "val", "test")
    targets = {split: readable.targets(split) for split in splits}
    fitted = fit_head(start.classifier, pixels, targets, len(readable.labels), name, options.data_use.seed, run)
    listener.say(f"features in {fitted.feature_seconds:.1f} s, {name} in {fitted.fit_seconds:.1f} s")
    result = TrainResult(
        run=folder,
        validation_accuracy=fitted.scores["val"].accuracy,
        n_validation=len(targets["val"]),
        test_accuracy=None,
        n_test=len(targets["test"]),
        n_train=len(targets["train"]),
        n_parameters=sum(p.numel() for p in fitted.classifier.parameters()),
        best_epoch=0,
        n_epochs=0,
        seconds=0.0,
        unreadable={str(image.path): reason for image, reason in readable.unreadable.items()},
    )
    return complete(
        run, options, replace(start, dataset=readable, classifier=fitted.classifier), pixels, result, started
    )


def _start(options: TrainOptions, dataset: Dataset) -> Start:
    """The network whose features are used: a run's, or a published one."""
    name = str(options.source.features)
    try:
        run = Run(find_model(name))
        manifest = run.manifest
    except RunError as error:
        if name in SCRATCH:
            raise OptionError(
                f"--features {name}: it has no trained weights; name a run or a published model"
            ) from error
        network = NetworkOptions(name, IMAGENET, options.network.image_size)
        try:
            classifier, preprocessing = build(network, len(dataset.labels))
        except OptionError as unknown:
            raise OptionError(f"--features {name}: neither a run ({error}) nor a model ({unknown})") from unknown
        return Start(dataset, classifier, preprocessing, network)
    return Start(dataset, load_checkpoint(run), manifest.preprocessing, network_options(manifest, name))
