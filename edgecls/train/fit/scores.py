"""Loss and answers of an epoch, counted on the device and summed over all processes that train together."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor


class Sums:
    """Loss and hits of an epoch, summed on the device: asking for a number at every step would stall a GPU."""

    def __init__(self) -> None:
        self.loss: Tensor | float = 0.0
        self.hits: Tensor | float = 0.0
        self.n = 0

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        classes = targets.argmax(1) if targets.ndim == 2 else targets  # of mixed pictures the larger part
        self.loss = self.loss + loss.detach() * len(targets)
        self.hits = self.hits + (logits.detach().argmax(1) == classes).sum()
        self.n += len(targets)

    def means(self, trainer: L.Trainer) -> tuple[float, float]:
        """Of all processes together."""
        device = trainer.strategy.root_device
        sums = torch.tensor([float(self.loss), float(self.hits), float(self.n)], dtype=torch.float64, device=device)
        loss, hits, n = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return loss / max(n, 1), hits / max(n, 1)


@dataclass(frozen=True)
class Validated:
    """What the validation images of all processes gave; all but the loss are fractions.

    Attributes:
        recall, f1: means over the classes that have images.
        n_answered: classes that were answered at least once.
    """

    loss: float
    accuracy: float
    recall: float
    f1: float
    n_answered: int


class Counts:
    """Answers of an epoch's validation by class, counted on the device."""

    def __init__(self, n_classes: int) -> None:
        self.loss: Tensor | float = 0.0
        self.by_class: Tensor | float = 0.0  # (3, n_classes): images, answers, hits
        self.n_classes = n_classes

    def add(self, logits: Tensor, targets: Tensor) -> None:
        self.loss = self.loss + F.cross_entropy(logits, targets, reduction="sum")
        answers = logits.argmax(1)
        rows = (targets, answers, targets[answers == targets])
        self.by_class = self.by_class + torch.stack([torch.bincount(row, minlength=self.n_classes) for row in rows])

    def figures(self, trainer: L.Trainer) -> Validated:
        device = trainer.strategy.root_device
        counts = torch.zeros(3, self.n_classes, dtype=torch.float64, device=device) + self.by_class
        loss = torch.tensor([float(self.loss)], dtype=torch.float64, device=device)
        summed = trainer.strategy.reduce(torch.cat([loss, counts.flatten()]), reduce_op="sum").cpu()
        images, answers, hits = summed[1:].view(3, self.n_classes)
        present, n = images > 0, float(images.sum())
        recall = (hits[present] / images[present]).mean() if n else 0.0
        f1 = (2 * hits[present] / (images + answers)[present]).mean() if n else 0.0
        return Validated(
            float(summed[0]) / max(n, 1),
            float(hits.sum()) / max(n, 1),
            float(recall),
            float(f1),
            int((answers > 0).sum()),
        )
