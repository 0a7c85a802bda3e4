"""What a training tells while it runs: to whoever listens, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgecls.runs import Run
from edgecls.train.recipe_options import Monitor

PhaseName = Literal["head", "all", "retry"]


@dataclass(frozen=True)
class Epoch:
    """One row of `history.csv`; the losses are mean cross-entropies, the other figures fractions.

    Attributes:
        phase: `head`, `all` (that is, what is unfrozen), or `retry` where that fell behind the head and began again.
        val_recall, val_f1: means over the classes that have validation images; the first is the balanced accuracy.
    """

    epoch: int
    phase: PhaseName
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_recall: float
    val_f1: float
    seconds: float

    def score(self, monitor: Monitor) -> float:
        """The figure that chooses the best epoch; more is better."""
        return {
            "accuracy": self.val_accuracy,
            "balanced-accuracy": self.val_recall,
            "f1": self.val_f1,
            "loss": -self.val_loss,
        }[monitor]


def shown_score(epoch: Epoch, monitor: Monitor) -> str:
    """The monitored figure for a message: `balanced accuracy 93.1 %`."""
    name = monitor.replace("-", " ")
    return f"{name} {epoch.val_loss:.3f}" if monitor == "loss" else f"{name} {100 * epoch.score(monitor):.1f} %"


@dataclass(frozen=True)
class Progress:
    """How far the training is.

    Attributes:
        title: what it does, such as `epoch 11 of 15, all weights`.
        done, total: images of this stretch.
        images_per_second: None before there is a figure.
        seconds_left: until the stretch ends; None before there is a figure.
    """

    title: str
    done: int
    total: int
    images_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class Listener:
    """Who hears of a training as it goes.

    Attributes:
        say: called with lines about what was found and chosen.
        on_epoch: called after every epoch.
        on_progress: called many times a second.
        on_measured: called when a run has all its figures, before it counts as complete: to draw them. A training that
            was killed while it draws goes on with it.
    """

    say: Callable[[str], None] = lambda line: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_measured: Callable[[Run], object] = lambda run: None
