"""How far a training is: the share of its schedule that is over by steps, and how many epochs fit into a time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Final

FEWEST: Final = 8  # epochs that a time is divided into, where that leaves some batches for each


@dataclass(frozen=True)
class Plan:
    """Epochs that fit into a time.

    Attributes:
        epochs: how many.
        batches: of each, at most all of them.
    """

    epochs: int
    batches: int

    @property
    def is_empty(self) -> bool:
        return not self.epochs


def plan(seconds: float, batch_seconds: float, validation_seconds: float, n_batches: int) -> Plan:
    """Divide a time into epochs of equal length, each with a validation at its end.

    An epoch is one pass over the images, or a part of one where fewer than eight passes fit: so that there are enough
    of them to choose from, and the last one ends when the time does.

    Args:
        seconds: for all epochs together.
        batch_seconds, validation_seconds: of one training batch, and of one validation.
        n_batches: of a pass.
    """
    passes = seconds / (n_batches * batch_seconds + validation_seconds)
    epochs = max(FEWEST, math.floor(passes))
    batches = math.floor((seconds / epochs - validation_seconds) / batch_seconds)
    while epochs > 1 and batches < min(n_batches, math.ceil(validation_seconds / batch_seconds)):
        epochs -= 1  # validating would take longer than learning
        batches = math.floor((seconds / epochs - validation_seconds) / batch_seconds)
    return Plan(epochs, min(batches, n_batches)) if batches > 0 else Plan(0, 0)


@dataclass
class Pace:
    """The share of a schedule that is over, by steps.

    Every epoch takes the schedule an even part further. Where there is a time to keep, the parts that are left are
    divided anew after each epoch: an epoch that took longer than planned leaves fewer of them.

    Attributes:
        epochs: planned in all.
        steps: of an epoch.
        ends: share of the schedule, 0 to 1, at the end of the epochs that have begun; one more each epoch.
        deadline: by `time.perf_counter`, when the last epoch should end; None where nobody waits.
    """

    epochs: int
    steps: int
    ends: list[float] = field(default_factory=list)
    deadline: float | None = None

    def at(self, step: int) -> float:
        """Share of the schedule that is over before a step, 0 to 1."""
        epoch, within = divmod(step, self.steps)
        start, end = self._end(epoch - 1), self._end(epoch)
        return start + (end - start) * within / self.steps

    def _end(self, epoch: int) -> float:
        if epoch < 0:
            return 0.0
        if epoch < len(self.ends):
            return self.ends[epoch]
        known = self.ends[-1] if self.ends else 0.0
        left = max(self.epochs - len(self.ends), 1)
        return min(known + (1 - known) * (epoch + 1 - len(self.ends)) / left, 1.0)

    def begin(self, epoch: int) -> None:
        """Settle how far the schedule will be at the end of an epoch (0 is the first)."""
        if epoch == len(self.ends):
            self.ends.append(self._end(epoch))

    def adapt(self, epochs_done: int, epoch_seconds: float) -> None:
        """Plan as many further epochs as fit before the deadline."""
        if self.deadline is None or self.is_over(epochs_done):
            return
        left = round((self.deadline - time.perf_counter()) / epoch_seconds)
        self.epochs = epochs_done + max(left, 0)

    def is_over(self, epochs_done: int) -> bool:
        return epochs_done >= self.epochs
