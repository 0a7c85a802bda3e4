"""A scikit-learn classifier on the features of a trained network: fit it, prove it as ONNX, write it, measure it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor, nn

from edgecls import metrics
from edgecls.datasets import Split
from edgecls.metrics import Indices
from edgecls.runs import CHECKPOINT, Run
from edgecls.train.batches import Inputs
from edgecls.train.checkpoint import save_checkpoint
from edgecls.train.classical import fit_classical
from edgecls.train.classical_head import check_answers, head_onnx, linear_head
from edgecls.train.features import features_of
from edgecls.train.models import PixelClassifier
from edgecls.train.onnx_head import HEAD, OnnxHead, set_last_layer
from edgecls.train.options import ClassicalName


@dataclass(frozen=True)
class SplitScores:
    """How a classifier did on one split, as fractions; precision and recall are means over the classes."""

    n: int
    accuracy: float
    precision: float
    recall: float


@dataclass(frozen=True)
class FittedHead:
    """Attributes:
    classifier: the network with its new head, in evaluation mode.
    scores: of the splits that have images, training among them.
    feature_seconds, fit_seconds: the pass through the backbone; fitting, proving and writing.
    """

    classifier: PixelClassifier
    scores: dict[Split, SplitScores]
    feature_seconds: float
    fit_seconds: float


def fit_head(
    classifier: PixelClassifier,
    pixels: Mapping[Split, Inputs],
    targets: Mapping[Split, Indices],
    n_classes: int,
    name: ClassicalName,
    seed: int,
    run: Run,
) -> FittedHead:
    """Fit a classifier on the features of the training images, and leave checkpoint and head in the run folder.

    The head lies in `head.onnx`, and the head in the checkpoint is empty; logistic regression is a linear layer, which
    lies in the checkpoint as that of any other run.

    Args:
        classifier: whose features are used: what the last layer of its head sees. That layer is replaced.
        pixels: (n, h, w, 3) uint8 by split; `train` must have some.
        targets: (n,) label indices by split.

    Raises:
        TrainingError: a class has no training image, or the ONNX form does not answer as scikit-learn.
        MissingExtra: skl2onnx or XGBoost is not installed.
    """
    started = time.perf_counter()
    classifier.eval()
    features = {split: _penultimate(classifier, each) for split, each in pixels.items() if len(each)}
    featured = time.perf_counter()
    training = features["train"].numpy()
    classical = fit_classical(name, training, targets["train"], n_classes, seed)
    head: nn.Linear | OnnxHead
    if name == "logistic":
        head = linear_head(classical)
        check_answers(classical, training, head)
        set_last_layer(classifier, head)
        save_checkpoint(classifier, run.path(CHECKPOINT))
    else:
        set_last_layer(classifier, _empty(classical.n_features, n_classes))
        head = OnnxHead(head_onnx(classical, training), classical.n_features, n_classes)
        head.write(run.path(HEAD))
        save_checkpoint(classifier, run.path(CHECKPOINT))
        set_last_layer(classifier, head)
    fitted = time.perf_counter()
    scores = {split: _scores(head, each, targets[split], n_classes) for split, each in features.items()}
    return FittedHead(classifier.eval(), scores, featured - started, fitted - featured)


def _penultimate(classifier: PixelClassifier, pixels: Inputs) -> Tensor:
    """What the last layer of the head sees, (n, n_features) float32 on the CPU."""
    features = features_of(classifier, pixels)
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


def _scores(head: nn.Module, features: Tensor, truth: Indices, n_classes: int) -> SplitScores:
    answered: Any = head(features).detach().argmax(1).numpy()
    precision, recall, _, _ = precision_recall_fscore_support(
        truth, answered, labels=np.arange(n_classes), average="macro", zero_division=0
    )
    return SplitScores(len(truth), metrics.accuracy(answered, truth), float(precision), float(recall))
