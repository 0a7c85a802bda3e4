"""Classes added to a trained model: its head keeps its rows and gets new ones, and what it forgets is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgecls import metrics
from edgecls.datasets import Dataset, read_split
from edgecls.errors import OptionError
from edgecls.images import natural_key
from edgecls.labelled import SPLITS, LabelledImage, Split
from edgecls.options import flag_name, flags_of, flat
from edgecls.runs import METRICS, SPLIT, Run, find_run, write_json
from edgecls.train.data.pixels import Decoded, decode
from edgecls.train.data.survey import survey_of
from edgecls.train.evidence import check_evidence
from edgecls.train.kinds.result import TrainResult
from edgecls.train.kinds.single import train_single
from edgecls.train.kinds.start import Start
from edgecls.train.machine import rank
from edgecls.train.networks.checkpoint import load_checkpoint, load_proved_checkpoint, logits_of, network_options
from edgecls.train.networks.onnx_head import HEAD
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener
from edgecls.train.recipe_options import NetworkOptions


@dataclass(frozen=True)
class Extension:
    """A trained model that is to learn more classes.

    Attributes:
        run: the run that is extended.
        old_labels: its classes; they come first in the order of the logits.
        start: its network with the longer head, and the images of its own training beside the new ones.
        options: with the network that the run has.
    """

    run: Run
    old_labels: tuple[str, ...]
    start: Start
    options: TrainOptions


def extend(options: TrainOptions, dataset: Dataset) -> Extension:
    """Join the new images with those that the old run was trained on, and lengthen its head.

    Without the old images the old classes would be forgotten within an epoch ("catastrophic forgetting", French 1999),
    so they are trained along; those that are no longer there are reported as unreadable.

    Raises:
        OptionError: no new class in the data, options for another network, or a run without images of its own.
        RunError: no such run, or a damaged one.
    """
    run = find_run(str(options.source.extend))
    manifest = run.manifest
    if not run.path(SPLIT).is_file():
        raise OptionError(f"--extend {options.source.extend}: it has no {SPLIT}; only a trained run can be extended")
    network = network_options(manifest, str(run.folder))
    if run.path(HEAD).is_file():
        raise OptionError(
            f"--extend {options.source.extend}: its classifier is none of a network's; extend a trained network"
        )
    if options.network not in (NetworkOptions(), replace(network, image_size=manifest.preprocessing.size_hw)):
        differing = [flag_name(flag.name) for flag in flags_of(NetworkOptions) if _differs(options.network, flag.name)]
        raise OptionError(f"--extend keeps the network of {options.source.extend}; leave out {', '.join(differing)}")
    old = manifest.labels
    new = sorted(set(dataset.labels) - set(old), key=natural_key)
    if not new:
        raise OptionError(
            f"--extend {options.source.extend}: the data has no class that it does not know already; to train on more "
            "images of the same classes use --weights RUN/checkpoint.pt"
        )
    known = read_split(run.path(SPLIT), old)
    check_evidence(run, known.splits["val"])
    joined = _joined(known, dataset, (*old, *new))
    classifier = load_proved_checkpoint(run).train()
    classifier.lengthen_head(len(joined.labels))
    survey = survey_of(joined, options.data_use.seed)
    start = Start(joined, survey, classifier, manifest.preprocessing, network, str(run.folder))
    return Extension(run, old, start, replace(options, network=network))


def _differs(network: NetworkOptions, name: str) -> bool:
    return bool(getattr(network, name) != flat(NetworkOptions())[name])


def _joined(old: Dataset, new: Dataset, labels: tuple[str, ...]) -> Dataset:
    splits: dict[Split, tuple[LabelledImage, ...]] = {}
    known = {image.path.absolute() for split in SPLITS for image in old.splits[split]}
    for split in SPLITS:
        added = [image for image in new.splits[split] if image.path.absolute() not in known]
        splits[split] = (*old.splits[split], *added)
    return Dataset(labels, splits, unused=new.unused)


@dataclass(frozen=True)
class Forgetting:
    """What extending cost and brought; accuracies are fractions of the validation images.

    Attributes:
        old_before: of the old classes' images, by the old model.
        old_after, new_after: of the old and the new classes' images, by the extended model.
        forgotten: images that the old model got right and the extended one does not.
    """

    old_before: float
    old_after: float
    new_after: float
    n_old: int
    n_new: int
    forgotten: int


def train_extended(
    options: TrainOptions, dataset: Dataset, folder: Path, listener: Listener, deadline: float | None = None
) -> TrainResult:
    """Train an extended model, and say what it has forgotten.

    Raises:
        OptionError, RunError, DatasetError, TrainingError: as `extend` and `train_single`.
    """
    extension = extend(options, dataset)
    start = extension.start
    decoded = decode(start.dataset, start.preprocessing, options.data_use.cache, listener)
    result = train_single(extension.options, start, decoded, folder, listener, deadline=deadline)
    if rank():
        return result
    run = Run(folder)
    compared = _forgetting(extension, decoded, logits_of(load_checkpoint(run), decoded.pixels["val"]))
    figures = {**result.figures, "extended": asdict(compared)}
    result = replace(result, figures=figures)
    write_json(run.path(METRICS), result.to_json())
    scalars = {name: getattr(compared, name) for name in ("old_before", "old_after", "new_after")}
    manifest = run.manifest
    run.record(replace(manifest, metrics={**manifest.metrics, **scalars}))
    return result


def _forgetting(extension: Extension, decoded: Decoded, logits: Tensor) -> Forgetting:
    """Compare the old model's answers with the extended one's, on the same validation images.

    Args:
        decoded: the joined images.
        logits: (n, n_classes) of the extended model for every validation image.
    """
    truth, after = decoded.dataset.targets("val"), logits.argmax(1).numpy()
    is_old = truth < len(extension.old_labels)  # old labels come first
    before = logits_of(load_checkpoint(extension.run), decoded.pixels["val"][torch.from_numpy(np.flatnonzero(is_old))])
    was_right = before.argmax(1).numpy() == truth[is_old]
    is_right = after[is_old] == truth[is_old]
    return Forgetting(
        old_before=float(was_right.mean()),
        old_after=float(is_right.mean()),
        new_after=metrics.accuracy(after[~is_old], truth[~is_old]),
        n_old=int(is_old.sum()),
        n_new=int((~is_old).sum()),
        forgotten=int(np.sum(was_right & ~is_right)),
    )
