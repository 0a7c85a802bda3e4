"""What training makes small: cross-entropy with the labels, and with a teacher's answers."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgecls.train.networks.models import PixelClassifier
from edgecls.train.recipe_options import Balance

# the share of a class in the loss is its number of images to the power of 1 less this
_POWERS: Final[dict[Balance, float]] = {"none": 0.0, "root": 0.5, "weights": 1.0, "sampling": 1.0}


class Teacher(nn.Module):
    """A trained classifier that answers for another one; it is never trained."""

    def __init__(self, classifier: PixelClassifier, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self.size_hw = size_hw

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)  # its batch norms stay as they are while the student trains

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(n, h, w, 3) uint8, the student's own augmented view -> logits (n, n_classes).

        Teacher and student see the same view, as consistent teaching asks for (arXiv 2106.05237); where their sizes
        differ, the view is resized.
        """
        if tuple(images.shape[1:3]) != self.size_hw:
            planes = images.permute(0, 3, 1, 2).float()
            planes = F.interpolate(planes, self.size_hw, mode="bilinear", antialias=True)
            images = planes.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
        answers: Tensor = self.classifier(images)
        return answers


class Loss(nn.Module):
    """Mean cross-entropy of a batch, blended with a teacher's answers where there is one.

    With a teacher it is `(1 - w) * CE + w * T^2 * KL(teacher / T || student / T)`, arXiv 1503.02531: the factor T^2
    keeps both gradients comparable.

    Args:
        label_smoothing: share of each target spread over all classes, 0 to 1.
        class_weights: (n_classes,) float, mean 1 over the training images; None for all alike.
        teacher, temperature, teacher_weight: T and w above.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        teacher: Teacher | None = None,
        temperature: float = 4.0,
        teacher_weight: float = 0.7,
    ) -> None:
        super().__init__()
        self.label_smoothing, self.temperature, self.teacher_weight = label_smoothing, temperature, teacher_weight
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.teacher = teacher

    def forward(self, logits: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """logits (n, n_classes); targets (n,) int64 or (n, n_classes) shares; inputs as the network saw them."""
        loss = F.cross_entropy(logits, targets, self.class_weights, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return loss
        softened = F.log_softmax(logits / self.temperature, 1)
        taught = F.log_softmax(self.teacher(inputs) / self.temperature, 1)
        divergence = F.kl_div(softened, taught, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.teacher_weight) * loss + self.teacher_weight * divergence


def guessing_loss(targets: Tensor, n_classes: int, label_smoothing: float, balance: Balance) -> float:
    """What a network loses that always answers the shares of the classes, and nothing better: their entropy.

    Args:
        targets: (n,) int64.
        balance: which makes the shares more even, as weights or by the way that classes are drawn.
    """
    counts = torch.bincount(targets, minlength=n_classes).double()
    shares = counts ** (1 - _POWERS[balance])
    shares = shares / shares.sum()
    smoothed = (1 - label_smoothing) * shares + label_smoothing / n_classes
    return float(torch.special.entr(smoothed).sum())


def class_weights(targets: Tensor, n_classes: int, balance: Balance) -> Tensor | None:
    """What each class weighs in the loss, (n_classes,) float32, with a mean of 1 over the images; None for all alike.

    `weights` makes all classes weigh the same in sum, as scikit-learn's `balanced` does; `root` goes half of that way.
    """
    if balance not in ("root", "weights"):
        return None
    counts = torch.bincount(targets, minlength=n_classes).clamp(min=1).double()
    weights = counts ** -_POWERS[balance]
    return (weights * len(targets) / (weights * torch.bincount(targets, minlength=n_classes)).sum()).float()
