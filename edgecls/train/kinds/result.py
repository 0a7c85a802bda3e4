"""What a training leaves: a complete run folder, and the figures of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import torch

from edgecls.errors import RunError
from edgecls.labelled import SPLITS
from edgecls.manifest import Manifest
from edgecls.options import OPTIONS_KEY, flat
from edgecls.runs import CHECKPOINT, MANIFEST, METRICS, RESUME, Run, read_json, write_json
from edgecls.train.data.pixels import Decoded
from edgecls.train.fit.recorder import Recorder
from edgecls.train.kinds.measure import measure
from edgecls.train.kinds.record import Stopwatch, write_recipe
from edgecls.train.kinds.start import Start
from edgecls.train.machine import resolved_device
from edgecls.train.options import TrainOptions
from edgecls.train.progress import Listener

_NO_FIGURES: Final = ("figures", "is_interrupted")  # fields of a result that its file has not by these names


@dataclass(frozen=True)
class TrainResult:
    """What `train` made and measured; accuracies, precision and recall are fractions.

    Attributes:
        run: the run folder.
        validation_accuracy: of the best checkpoint, in float32.
        test_accuracy: the same on the test split; None where the data has none.
        figures: all that was measured, as `metrics.json` has it.
        best_epoch, n_epochs: 0 where no network was trained.
        unreadable: reason by path of the images that were left out.
        is_interrupted: whether the user stopped it, so that there is more to train.
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
    figures: dict[str, Any] = field(default_factory=dict)
    is_interrupted: bool = False

    @property
    def runs(self) -> tuple[Run, ...]:
        return (Run(self.run),)

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name not in _NO_FIGURES}
        return {**self.figures, **values, "run": str(self.run)}


def is_complete(run: Run) -> bool:
    """Whether a training has ended in this folder, with all that belongs to its run."""
    if run.path(RESUME).is_file() or not (run.path(METRICS).is_file() and run.path(MANIFEST).is_file()):
        return False
    return bool(run.manifest.metrics)


def read_result(run: Run) -> TrainResult:
    """What `train` returned for a run that has ended.

    Raises:
        RunError: damaged.
    """
    figures = read_json(run.path(METRICS))
    try:
        values = {each.name: figures[each.name] for each in fields(TrainResult) if each.name not in _NO_FIGURES}
    except KeyError as error:
        raise RunError(f"{run.path(METRICS)}: no {error} in it; the run is damaged") from error
    return TrainResult(**{**values, "run": run.folder}, figures=figures)


def complete(
    run: Run, options: TrainOptions, start: Start, decoded: Decoded, recorder: Recorder,
    clock: Stopwatch, listener: Listener,
) -> TrainResult:  # fmt: skip
    """Measure what was trained, and leave a complete run folder: manifest, recipe, figures, golden answers.

    It is complete when its manifest has metrics, which is written last. All before can be done again.

    Args:
        options: that repeat the training.
        start: with the readable images and the trained network.
        recorder: empty where no network was trained.
        clock: running since the training began.
        listener: draws what was measured.
    """
    recipe = write_recipe(run.folder, options, clock.laps)
    training = {
        **recipe[OPTIONS_KEY],
        **flat(start.network),
        "weights": start.network.resolved_weights,
        "image_size": list(start.preprocessing.size_hw),
        "n_images": {split: len(start.dataset.splits[split]) for split in SPLITS},
        "n_unreadable": len(start.dataset.unreadable),
        "torch": torch.__version__,
        "checkpoint": CHECKPOINT,
        **{name: recipe[name] for name in ("versions", "device", "threads", "seconds")},
    }
    head = options.source.classifier or "network"
    manifest = Manifest(start.dataset.labels, start.preprocessing, start.network.model, head=head, training=training)
    run.record(manifest)
    measured = measure(run, decoded, resolved_device(options.machine))
    result = replace(
        unmeasured(run.folder, start, recorder),
        validation_accuracy=measured.figures["validation_accuracy"],
        test_accuracy=measured.figures.get("test_accuracy"),
        seconds=clock.seconds,
        figures=measured.figures,
    )
    clock.lap("measure")
    training["seconds"] = write_recipe(run.folder, options, clock.laps)["seconds"]
    manifest = replace(manifest, training=training)
    write_json(run.path(METRICS), result.to_json())
    listener.on_measured(run)
    run.record(replace(manifest, metrics={**measured.scalars(), "parameters": result.n_parameters}))
    return result


def unmeasured(folder: Path, start: Start, recorder: Recorder) -> TrainResult:
    """What is known before the best checkpoint is measured; all that a process which does not lead has to tell."""
    n_images = {split: len(start.dataset.splits[split]) for split in SPLITS}
    best = recorder.best
    return TrainResult(
        run=folder,
        validation_accuracy=best.val_accuracy if best else math.nan,
        n_validation=n_images["val"],
        test_accuracy=None,
        n_test=n_images["test"],
        n_train=n_images["train"],
        n_parameters=start.n_parameters,
        best_epoch=best.epoch if best else 0,
        n_epochs=len(recorder.epochs),
        seconds=0.0,
        unreadable={str(image.path): reason for image, reason in start.dataset.unreadable.items()},
    )
