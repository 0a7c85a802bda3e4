"""What a training tells while it runs: to whoever listens, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgecls.train.recorder import Epoch


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
    """

    say: Callable[[str], None] = lambda line: None
    on_epoch: Callable[[Epoch], None] = lambda epoch: None
    on_progress: Callable[[Progress], None] = lambda progress: None
