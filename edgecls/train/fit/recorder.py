"""What a run leaves behind while it trains: a row for every epoch, and the best checkpoint so far."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from edgecls.errors import Diverged, RunError
from edgecls.runs import CHECKPOINT, HISTORY, atomic_path
from edgecls.train.networks.checkpoint import save_checkpoint
from edgecls.train.networks.models import PixelClassifier
from edgecls.train.progress import Epoch, PhaseName
from edgecls.train.recipe_options import Monitor

KEPT: Final = "edgecls"  # our part of Lightning's checkpoint


class Recorder:
    """The history of a run, `history.csv` after every epoch, and `checkpoint.pt` of the best one.

    Args:
        folder: the run folder; None keeps the history in memory only, as all processes but the first do.
        on_epoch: called after every epoch.
        monitor: the figure that chooses the best epoch.
    """

    def __init__(
        self,
        folder: Path | None,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        monitor: Monitor = "accuracy",
    ) -> None:
        self.epochs: list[Epoch] = []
        self._folder, self._on_epoch, self.monitor = folder, on_epoch, monitor

    @property
    def best(self) -> Epoch | None:
        """The best epoch by the monitored figure; of two equal ones that with the lower loss."""
        return max(self.epochs, key=lambda epoch: (epoch.score(self.monitor), -epoch.val_loss), default=None)

    def of_phase(self, name: PhaseName) -> list[Epoch]:
        """The epochs of one phase."""
        return [epoch for epoch in self.epochs if epoch.phase == name]

    def add(self, epoch: Epoch, classifier: PixelClassifier) -> None:
        """Record an epoch, and the weights where they are the best so far.

        Raises:
            Diverged: the loss is no longer finite.
            RunError: the folder cannot be written to.
        """
        if not math.isfinite(epoch.train_loss):
            kept = f"; the best checkpoint so far is kept in {self._folder}" if self.best and self._folder else ""
            raise Diverged(
                f"training diverged: the loss is {epoch.train_loss} after epoch {epoch.epoch}. Use a lower --lr than "
                f"{epoch.lr:g}, or --clip 1{kept}"
            )
        self.epochs.append(epoch)
        if self._folder:
            with atomic_path(self._folder / HISTORY) as partial, partial.open("w", newline="") as file:
                writer = csv.DictWriter(file, [field.name for field in fields(Epoch)])
                writer.writeheader()
                writer.writerows(self.rows())
            if self.best is epoch:
                save_checkpoint(classifier, self._folder / CHECKPOINT)
        self._on_epoch(epoch)

    def rows(self) -> list[dict[str, Any]]:
        """The history as plain values, which `restore` takes back."""
        return [asdict(epoch) for epoch in self.epochs]

    def restore(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Go back to a history that was kept; later epochs are trained again, to the same end."""
        self.epochs = [Epoch(**row) for row in rows]


def without_improvement(epochs: Sequence[Epoch], monitor: Monitor) -> int:
    """How many epochs have passed since the monitored figure last rose."""
    if not epochs:
        return 0
    best = max(range(len(epochs)), key=lambda index: (epochs[index].score(monitor), -index))
    return len(epochs) - 1 - best


def kept_progress(path: Path) -> tuple[PhaseName, dict[str, Any], dict[str, Tensor]]:
    """What a killed run left: the name of its phase, our part of the checkpoint, and the classifier's weights.

    Raises:
        RunError: damaged, or something else.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        prefix = "classifier."
        state = {name.removeprefix(prefix): v for name, v in kept["state_dict"].items() if name.startswith(prefix)}
        return kept[KEPT]["phase"], kept[KEPT], state
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors for a file that is not its own
        raise RunError(f"{path}: cannot be resumed from ({type(error).__name__}); start the training anew") from error
