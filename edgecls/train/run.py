"""A folder of labelled photos to a run folder: split, decode, train the head, then all weights, and measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgecls import images, metrics
from edgecls.datasets import SPLITS, Dataset, Split, open_dataset, stratified_sample, write_split
from edgecls.errors import ImageError, OptionError, TrainingError
from edgecls.golden import N_GOLDEN, Golden
from edgecls.image_header import read_header
from edgecls.manifest import Manifest, Preprocessing
from edgecls.runs import (
    CHECKPOINT,
    METRICS,
    SPLIT,
    Run,
    create_run_folder,
    point_latest_at,
    write_json,
)
from edgecls.train.augment import Augmentation, augmentation
from edgecls.train.checkpoint import load_checkpoint, logits_of
from edgecls.train.loop import Device, Epoch, LoopOptions, Phase, Recorder, fit, keep_freed_memory
from edgecls.train.models import IMAGENET, NONE, SCRATCH, BuildOptions, PixelClassifier, build
from edgecls.train.pixels import Batches, decode_images

_MEASURED: Final[dict[Split, str]] = {"val": "validation", "test": "test"}  # splits, and their names in metrics.json
_SMALL: Final = 64  # pixels a side up to which pictures count as small: larger batches, gentler augmentation


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, and how; a value of None is chosen as its line says.

    Attributes:
        data: class folders, split folders, or a CSV.
        model: `cnn`, `resnet9`, `efficientnet_lite0`, a torchvision classifier, or `timm/NAME`.
        weights: `imagenet`, `none` or a state dict file; None is `none` for cnn and resnet9, else `imagenet`.
        image_size: side of the square input in pixels; None is the weights' own, and from scratch the
            photos' median short side, from 32 to 128.
        epochs: at most, in all.
        freeze_epochs: how many of them train the head alone; None is 10 with trained weights, else 0.
        batch_size: images a step; None is 128 up to 64 px, else 32.
        lr: peak learning rate of the first phase; None is 3e-3 for a head (AdamW), 0.1 from scratch (SGD, batch
            128; in proportion to the batch). Trained weights are fine-tuned at a twentieth of the head's.
        augment: `none`, `shift`, `light` or `standard`; None is `light` up to 64 px, else `standard`.
        width: channels of the first layer of cnn and resnet9.
        patience: epochs without a better validation accuracy before a phase stops; 0 never stops.
        val_fraction: share that validates where the data has no validation split.
        seed: of the split, the new weights, the order and the augmentation.
        device: `auto`, `cpu` or `cuda`.
        out: the run folder to make; None is `runs/<time>-<model>`.
    """

    data: Path = Path("data")
    model: str = "efficientnet_lite0"
    weights: str | None = None
    image_size: int | None = None
    epochs: int = 15
    freeze_epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    augment: str | None = None
    width: int = 16
    patience: int = 10
    val_fraction: float = 0.2
    seed: int = 0
    device: Device = "auto"
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise OptionError(f"--epochs {self.epochs}: expected 1 or more")
        if self.freeze_epochs is not None and not 0 <= self.freeze_epochs <= self.epochs:
            raise OptionError(f"--freeze-epochs {self.freeze_epochs}: expected 0 to --epochs ({self.epochs})")
        if self.freeze_epochs and self.resolved_weights == NONE:
            raise OptionError("--freeze-epochs with --weights none would freeze random weights; leave one of them out")
        if self.image_size is not None and not 8 <= self.image_size <= 1024:
            raise OptionError(f"--image-size {self.image_size}: expected 8 to 1024 pixels")
        if self.batch_size is not None and self.batch_size < 2:
            raise OptionError(f"--batch-size {self.batch_size}: expected 2 or more; batch norm cannot train on one")
        if self.lr is not None and not 0 < self.lr < 100:
            raise OptionError(f"--lr {self.lr}: expected a number above 0 and below 100")
        if not 0 < self.val_fraction < 1:
            raise OptionError(f"--val-fraction {self.val_fraction}: expected a number above 0 and below 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise OptionError("--device cuda: PyTorch sees no CUDA GPU here; use --device auto or cpu")
        if self.patience < 0:
            raise OptionError(f"--patience {self.patience}: expected 0 (never stop) or more")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"--seed {self.seed}: expected 0 to {2**32 - 1}")
        if self.augment is not None:
            augmentation(self.augment)

    @property
    def resolved_weights(self) -> str:
        return self.weights or (NONE if self.model in SCRATCH else IMAGENET)


@dataclass(frozen=True)
class TrainResult:
    """What `train` made and measured; accuracies are fractions.

    Attributes:
        run: the run folder.
        validation_accuracy: of the best checkpoint, in float32.
        test_accuracy: the same on the test split; None where the data has none.
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

    def to_json(self) -> dict[str, Any]:
        return _json_values(self)


def train(
    options: TrainOptions,
    *,
    on_start: Callable[[str], None] = lambda line: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    progress: bool = False,
) -> TrainResult:
    """Train a classifier and leave a complete run folder.

    Args:
        on_start: called with lines about what was found and chosen, as it is.
        on_epoch: called after every epoch.
        progress: show a progress bar on standard error.

    Raises:
        OptionError, DatasetError, TrainingError, MissingExtra, RunError: with what to do next.
    """
    started = time.perf_counter()
    keep_freed_memory()
    L.seed_everything(options.seed, verbose=False)
    dataset = open_dataset(options.data, val_fraction=options.val_fraction, seed=options.seed)
    size_hw = _size_hw(options, dataset)
    classifier, preprocessing = build(
        BuildOptions(options.model, options.resolved_weights, size_hw, options.width), len(dataset.labels)
    )
    run = Run(create_run_folder(options.model, options.out))
    dataset, pixels = _decode(dataset, preprocessing)
    on_start(_described(options, dataset, preprocessing, classifier))
    for warning in dataset.warnings():
        on_start(f"warning: {warning}")
    write_split(dataset, run.path(SPLIT))
    recorder = Recorder(run.folder, classifier, on_epoch)
    loop = LoopOptions(options.device, progress)
    try:
        _fit_phases(classifier, dataset, pixels, options, recorder, loop)
    except KeyboardInterrupt:
        if recorder.best is None:
            raise TrainingError(f"interrupted before the first epoch ended; {run.folder} holds no checkpoint") from None
        on_start(f"interrupted: the best epoch so far ({recorder.best.epoch}) is kept")
    if recorder.best is None:
        raise TrainingError(f"training ended before its first epoch did; {run.folder} holds no checkpoint")
    manifest = Manifest(dataset.labels, preprocessing, options.model, training=_provenance(options, dataset))
    run.record(manifest)
    measured = _measure(run, dataset, pixels, loop.resolved_device)
    result = TrainResult(
        run=run.folder,
        validation_accuracy=measured["validation_accuracy"],
        n_validation=len(dataset.splits["val"]),
        test_accuracy=measured.get("test_accuracy"),
        n_test=len(dataset.splits["test"]),
        n_train=len(dataset.splits["train"]),
        n_parameters=sum(p.numel() for p in classifier.parameters()),
        best_epoch=recorder.best.epoch,
        n_epochs=len(recorder.epochs),
        seconds=time.perf_counter() - started,
        unreadable={str(image.path): reason for image, reason in dataset.unreadable.items()},
    )
    write_json(run.path(METRICS), {**result.to_json(), **measured})
    figures = {name: value for name, value in measured.items() if isinstance(value, float)}
    figures["parameters"] = result.n_parameters
    run.record(replace(manifest, metrics=figures))
    point_latest_at(run.folder)
    return result


def _size_hw(options: TrainOptions, dataset: Dataset) -> tuple[int, int] | None:
    if options.image_size:
        return options.image_size, options.image_size
    if options.model not in SCRATCH:
        return None
    sides = []
    for image in stratified_sample(dataset.splits["train"], 100, options.seed):
        try:
            header = read_header(images.read(image.path))
        except ImageError:
            continue  # reported when all images are decoded
        sides.append(min(header.height, header.width))
    side = min(max(round(float(np.median(sides)) / 8) * 8, 32), 128) if sides else 128
    return side, side


def _decode(dataset: Dataset, preprocessing: Preprocessing) -> tuple[Dataset, dict[Split, Tensor]]:
    decoded = {split: decode_images(dataset.splits[split], preprocessing) for split in SPLITS}
    unreadable = {image: reason for each in decoded.values() for image, reason in each.unreadable.items()}
    return dataset.without(unreadable), {split: each.pixels for split, each in decoded.items()}


def _described(
    options: TrainOptions, dataset: Dataset, preprocessing: Preprocessing, classifier: PixelClassifier
) -> str:
    counts = ", ".join(f"{len(dataset.splits[split]):,} {split}" for split in SPLITS if dataset.splits[split])
    height, width = preprocessing.size_hw
    n_parameters = sum(p.numel() for p in classifier.parameters())
    return (
        f"{len(dataset.labels)} classes, {counts} images; {options.model} at {height} x {width} px, "
        f"{n_parameters / 1e6:.2f} M parameters, weights: {options.resolved_weights}"
    )


def _fit_phases(
    classifier: PixelClassifier,
    dataset: Dataset,
    pixels: dict[Split, Tensor],
    options: TrainOptions,
    recorder: Recorder,
    loop: LoopOptions,
) -> None:
    classifier.to(memory_format=torch.channels_last)
    targets = {split: torch.from_numpy(dataset.targets(split)) for split in ("train", "val")}
    small = max(pixels["train"].shape[1:3]) <= _SMALL
    batch_size = options.batch_size or (128 if small else 32)
    from_scratch = options.resolved_weights == NONE
    freeze_epochs = 0 if from_scratch else options.freeze_epochs
    if freeze_epochs is None:
        freeze_epochs = min(10, options.epochs)
    head_lr = options.lr or 3e-3
    if freeze_epochs:
        # A frozen backbone gives one picture the same features in every epoch: they are computed once, after
        # which an epoch costs milliseconds. So this phase sees no augmentation.
        classifier.to(loop.resolved_device)
        features = {split: _features(classifier, pixels[split]) for split in ("train", "val")}
        # Rate and dropout by three five-fold cross-validations on cats and dogs; see docs/training.md.
        head = Phase("head", freeze_epochs, head_lr, "adamw", 0.05, patience=options.patience)
        dropped = nn.Sequential(nn.Dropout(0.5), classifier.head)
        batches = Batches(features["train"], targets["train"], batch_size, seed=options.seed)
        fit(dropped, batches, Batches(features["val"], targets["val"], 1024), head, recorder, loop)
    if options.epochs > freeze_epochs:
        view: Augmentation = augmentation(options.augment or ("light" if small else "standard"))
        rest = options.epochs - freeze_epochs
        if from_scratch:
            lr = options.lr or 0.1 * batch_size / 128
            phase = Phase("all", rest, lr, "sgd", 5e-4, patience=options.patience)
        else:
            phase = Phase("all", rest, head_lr / 20, "adamw", 0.05, patience=options.patience)
        batches = Batches(pixels["train"], targets["train"], batch_size, seed=options.seed, augmentation=view)
        fit(classifier, batches, Batches(pixels["val"], targets["val"], batch_size), phase, recorder, loop)


def _features(classifier: PixelClassifier, pixels: Tensor, batch_size: int = 16) -> Tensor:
    device = next(classifier.parameters()).device
    classifier.eval()
    with torch.no_grad():
        features = torch.cat([classifier.features(batch.to(device)).cpu() for batch in torch.split(pixels, batch_size)])
    classifier.train()
    return features


def _measure(run: Run, dataset: Dataset, pixels: dict[Split, Tensor], device: str) -> dict[str, Any]:
    """Let the checkpoint, read back from disk, answer; keep golden answers; return the figures."""
    classifier = load_checkpoint(run).to(device)
    measured: dict[str, Any] = {}
    validation_answers: NDArray[np.int64] = np.empty(0, np.int64)
    for split, name in _MEASURED.items():
        truth = dataset.targets(split)
        if not len(truth):
            continue
        answers = logits_of(classifier, pixels[split]).argmax(1).numpy()
        share = metrics.accuracy(answers, truth)
        matrix = metrics.confusion_matrix(answers, truth, len(dataset.labels))
        measured[f"{name}_accuracy"] = share
        measured[f"{name}_interval"] = metrics.wilson_interval(share, len(truth))
        measured[f"{name}_confusion"] = matrix.tolist()
        if split == "val":
            validation_answers = answers
    measured["labels"] = list(dataset.labels)
    _write_golden(run, dataset, pixels["val"], classifier.cpu(), validation_answers)
    return measured


def _write_golden(
    run: Run, dataset: Dataset, pixels: Tensor, classifier: PixelClassifier, validation_answers: NDArray[np.int64]
) -> None:
    """Of a few validation images, their logits taken on the CPU in float32."""
    chosen = set(stratified_sample(dataset.splits["val"], N_GOLDEN, 0))
    golden = pixels[[row for row, image in enumerate(dataset.splits["val"]) if image in chosen]]
    Golden(golden.numpy(), logits_of(classifier, golden).numpy(), validation_answers).write(run)


def _provenance(options: TrainOptions, dataset: Dataset) -> dict[str, Any]:
    return {
        **_json_values(options),
        "weights": options.resolved_weights,
        "data": str(options.data.absolute()),
        "n_images": {split: len(dataset.splits[split]) for split in SPLITS},
        "n_unreadable": len(dataset.unreadable),
        "torch": torch.__version__,
        "checkpoint": CHECKPOINT,
    }


def _json_values(value: Any) -> dict[str, Any]:
    return {name: str(each) if isinstance(each, Path) else each for name, each in asdict(value).items()}
