"""A scikit-learn classifier on the features of a trained network: fit it, prove it as ONNX, write it, measure it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from edgecls.datasets import Dataset, split_rows, write_split
from edgecls.errors import OptionError, RunError
from edgecls.labelled import Split
from edgecls.metrics import Indices
from edgecls.runs import CHECKPOINT, SPLIT, Run, find_model
from edgecls.train.classical.head import check_answers, head_onnx, linear_head
from edgecls.train.classical.settings import fit_classical
from edgecls.train.data.batches import Inputs
from edgecls.train.data.pixels import Decoded
from edgecls.train.data.survey import survey_of
from edgecls.train.fit.recorder import Recorder
from edgecls.train.kinds.record import Stopwatch
from edgecls.train.kinds.result import TrainResult, complete
from edgecls.train.kinds.start import Start, check_size, described, with_geometry
from edgecls.train.networks.checkpoint import load_proved_checkpoint, network_options, save_checkpoint
from edgecls.train.networks.features import Features, features_of
from edgecls.train.networks.models import PixelClassifier, build
from edgecls.train.networks.onnx_head import HEAD, OnnxHead, set_last_layer
from edgecls.train.options import ClassicalName, TrainOptions
from edgecls.train.progress import Listener
from edgecls.train.recipe_options import IMAGENET, SCRATCH, GeometryOptions, NetworkOptions


def train_classical(
    options: TrainOptions, start: Start, decoded: Decoded, folder: Path, listener: Listener,
    features: Features | None = None,
) -> TrainResult:  # fmt: skip
    """Fit `--classifier` on the features of a network, and leave a complete run.

    Args:
        start: as `classical_start` gives it.
        decoded: its images.
        features: computes the features.

    Raises:
        DatasetError, TrainingError, MissingExtra, RunError: with what to do next.
    """
    clock, run, name = Stopwatch(decoded), Run(folder), options.source.classifier
    assert name  # whoever asked for features asked for a classifier: SourceOptions sees to it
    start = replace(start, dataset=decoded.dataset)
    listener.say(f"{described(start)}; {name} on its features")
    for warning in (*start.dataset.warnings(), *_seen_before(start, start.dataset)):
        listener.say(f"warning: {warning}")
    write_split(start.dataset, run.path(SPLIT))
    classifier = start.classifier.eval()
    began = time.perf_counter()
    found = _penultimate(
        classifier, decoded.pixels["train"], features or partial(features_of, on_progress=listener.on_progress)
    )
    featured = time.perf_counter()
    fit_head(classifier, found, start.dataset.targets("train"), name, options.data_use.seed, run)
    seconds = time.perf_counter() - featured
    listener.say(f"features in {featured - began:.1f} s, {name} in {seconds:.1f} s")
    clock.lap("features and classifier")
    return complete(run, options, start, decoded, Recorder(None), clock, listener)


def classical_start(options: TrainOptions, dataset: Dataset) -> Start:
    """The network whose features are used: a run's, or a published one.

    Raises:
        OptionError: neither a run nor a model has that name, or it has no trained weights, or folds would hold out
            images that the run has learnt from.
        RunError: a run that is damaged.
    """
    name, survey = str(options.source.features), survey_of(dataset, options.data_use.seed)
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
        check_size(classifier, preprocessing.size_hw, name)
        return Start(dataset, survey, classifier, with_geometry(preprocessing, options.geometry), network)
    if options.network.image_size or options.geometry != GeometryOptions():
        raise OptionError(
            f"--features {name} brings its own input; leave out --image-size, --resize, --crop and --interpolation"
        )
    if options.data_use.folds:
        raise OptionError(
            f"--folds with --features {name}: that run has learnt from images which the folds hold out, so they would "
            "flatter it; name a published model"
        )
    network = network_options(manifest, name)
    return Start(dataset, survey, load_proved_checkpoint(run), manifest.preprocessing, network, str(run.folder))


def _seen_before(start: Start, dataset: Dataset) -> Iterator[str]:
    """A warning where images that judge the classifier are among those that its features were learnt from."""
    path = Run(find_model(start.run)).path(SPLIT) if start.run else None
    if path is None or not path.is_file():
        return
    learnt = {Path(row["path"]).resolve() for row in split_rows(path) if row["split"] == "train"}
    judging: tuple[Split, ...] = ("val", "test")
    for split in judging:
        judged = dataset.splits[split]
        n_seen = sum(image.path.resolve() in learnt for image in judged)
        if n_seen:
            yield (
                f"{n_seen} of the {len(judged)} {split} images are among those that {start.run} learnt from, which "
                "may flatter the result; split as that run did, with its --seed and --val-fraction"
            )


def fit_head(
    classifier: PixelClassifier, features: Tensor, targets: Indices, name: ClassicalName, seed: int, run: Run
) -> None:
    """Fit a classifier on features in place of the last layer of a network, and leave checkpoint and head in the run.

    The head lies in `head.onnx`, and the head in the checkpoint is empty; logistic regression is a linear layer, which
    lies in the checkpoint as that of any other run.

    Args:
        classifier: whose features they are; its last layer is replaced.
        features: (n, n_features) float32 of the training images, n >= 1.
        targets: (n,) label indices.

    Raises:
        TrainingError: a class has no training image, or the ONNX form does not answer as scikit-learn.
        MissingExtra: skl2onnx or XGBoost is not installed.
    """
    training, n_classes = features.numpy(), classifier.n_classes
    classical = fit_classical(name, training, targets, n_classes, seed)
    if name == "logistic":
        head = linear_head(classical)
        check_answers(classical, training, head)
        set_last_layer(classifier, head)
        save_checkpoint(classifier, run.path(CHECKPOINT))
    else:
        set_last_layer(classifier, _empty(classical.n_features, n_classes))
        onnx_head = OnnxHead(head_onnx(classical, training), classical.n_features, n_classes)
        onnx_head.write(run.path(HEAD))
        save_checkpoint(classifier, run.path(CHECKPOINT))
        set_last_layer(classifier, onnx_head)


def _penultimate(classifier: PixelClassifier, pixels: Inputs, features_of_network: Features) -> Tensor:
    """What the last layer of the head sees, (n, n_features) float32 on the CPU."""
    features = features_of_network(classifier, pixels)
    if isinstance(classifier.head, nn.Linear | OnnxHead):
        return features
    device = next(each.device for each in classifier.parameters())
    with torch.inference_mode():
        return cast(Tensor, classifier.head[:-1](features.to(device)).cpu())


def _empty(n_features: int, n_classes: int) -> nn.Linear:
    """What a checkpoint has as its head where the real one is not a layer: zeros, which nobody takes for trained."""
    layer = nn.Linear(n_features, n_classes)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
