"""How long a batch takes on this machine: a few steps of the training to come, after which nothing has changed."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Final

import torch
from torch import Tensor

from edgecls.train.data.batches import Batch, Batches
from edgecls.train.fit.loop import LoopOptions, Phase, Training, make_trainer, quiet
from edgecls.train.fit.losses import Loss
from edgecls.train.fit.pace import Pace
from edgecls.train.fit.recorder import Recorder
from edgecls.train.networks.models import PixelClassifier

_STEPS: Final = 6  # the first of which is slower: memory is new to it
_VALIDATION_STEPS: Final = 3


@dataclass(frozen=True)
class Timing:
    """Seconds of a training batch, and of a whole validation."""

    batch: float
    validation: float

    def epoch(self, n_batches: int) -> float:
        return n_batches * self.batch + self.validation


class _Timed(Training):
    """The same steps, timed; nothing is recorded."""

    def __init__(self, classifier: PixelClassifier, phase: Phase, batches: tuple[Batches, Batches], loss: Loss) -> None:
        super().__init__(classifier, phase, batches, loss, Recorder(None))
        self.train_times = [time.perf_counter()]
        self.val_times = [time.perf_counter()]

    def on_train_batch_end(self, _outputs: object, _batch: object, _index: int) -> None:
        self.train_times.append(self._now())

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.val_times = [self._now()]

    def validation_step(self, batch: Batch, index: int) -> None:
        super().validation_step(batch, index)
        self.val_times.append(self._now())

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def time_batches(
    classifier: PixelClassifier, batches: tuple[Batches, Batches], phase: Phase, loss: Loss, options: LoopOptions
) -> Timing:
    """Train and validate a few batches; the weights are put back."""
    kept: dict[str, Tensor] = copy.deepcopy(classifier.state_dict())
    train, val = (
        replace(each, n_images=steps * each.batch_size)
        for each, steps in zip(batches, (_STEPS, _VALIDATION_STEPS), strict=True)
    )
    timed = _Timed(classifier, replace(phase, pace=Pace(1, _STEPS), ema=0.0, lookahead=0), (train, val), loss)
    with tempfile.TemporaryDirectory(prefix="edgecls-") as scratch, quiet():
        trainer = make_trainer(timed, [], replace(options, folder=None, loggers=()), scratch)
        trainer.fit(timed, train, val)
    classifier.load_state_dict(kept)
    return Timing(_usual_step(timed.train_times), _usual_step(timed.val_times) * len(batches[1]))


def _usual_step(times: list[float]) -> float:
    steps = [after - before for before, after in pairwise(times)]
    return median(steps[1:] or steps)
