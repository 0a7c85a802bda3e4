"""The learning-rate range test: which peak rate to train with (arXiv 1506.01186)."""

from __future__ import annotations

import io
import math
import tempfile
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any, Final

from lightning.pytorch.tuner.tuning import Tuner

from edgecls.errors import TrainingError
from edgecls.train.data.batches import Batches
from edgecls.train.fit.loop import LoopOptions, Phase, Training, make_trainer, quiet
from edgecls.train.fit.losses import Loss
from edgecls.train.fit.optimizers import make_optimizer
from edgecls.train.fit.pace import Pace
from edgecls.train.fit.recorder import Recorder
from edgecls.train.networks.models import PixelClassifier

_LOWEST: Final = 1e-5
_HIGHEST: Final = 10.0
_STEPS: Final = 100


class _Search(Training):
    """The same steps at a rate that Lightning's tuner raises; nothing is recorded."""

    lr: float = _LOWEST

    def on_train_epoch_end(self) -> None:
        self.train_batches.epoch += 1

    def configure_optimizers(self) -> Any:
        return make_optimizer(self.classifier, replace(self.phase.optimizer, lr=self.lr), self.phase.scales)


def find_lr(
    classifier: PixelClassifier, batches: tuple[Batches, Batches], phase: Phase, loss: Loss, options: LoopOptions
) -> float:
    """The rate at which the loss falls most steeply while the rate is raised step by step.

    100 steps, after which the weights are what they were.

    Raises:
        TrainingError: the loss never fell.
    """
    endless = replace(phase, ema=0.0, lookahead=0, pace=Pace(_STEPS, 1))  # an epoch has a step at least
    search = _Search(classifier, endless, batches, loss, Recorder(None))
    # Lightning's progress bar cannot be switched off here
    with tempfile.TemporaryDirectory(prefix="edgecls-") as scratch, quiet(), redirect_stderr(io.StringIO()):
        trainer = make_trainer(search, [], replace(options, folder=None, loggers=()), scratch)
        finder = Tuner(trainer).lr_find(
            search, batches[0], min_lr=_LOWEST, max_lr=_HIGHEST, num_training=_STEPS, update_attr=False
        )
    suggestion = finder.suggestion() if finder else None
    if suggestion is None or not math.isfinite(suggestion):
        raise TrainingError(
            f"--find-lr: the loss did not fall at any rate from {_LOWEST:g} to {_HIGHEST:g} within {_STEPS} steps; "
            "give --lr instead"
        )
    return float(suggestion)
