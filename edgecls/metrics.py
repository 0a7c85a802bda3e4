"""Answers and labels to figures, and how sure we are of them. NumPy only: it runs on the device."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def accuracy(predicted: Indices, truth: Indices) -> float:
    """Share of equal entries, 0 to 1; nan for no images. Also the agreement of two models' answers.

    Args:
        predicted, truth: (n,) label indices.
    """
    if predicted.shape != truth.shape or predicted.ndim != 1:
        raise ValueError(f"predicted and truth: expected one shape (n,), got {predicted.shape} and {truth.shape}")
    return float(np.mean(predicted == truth)) if len(truth) else math.nan


def confusion_matrix(predicted: Indices, truth: Indices, n_classes: int) -> NDArray[np.int64]:
    """(n_classes, n_classes) counts: row is the true class, column the answer."""
    flat = np.bincount(truth * n_classes + predicted, minlength=n_classes * n_classes)
    return flat.reshape(n_classes, n_classes).astype(np.int64)


def wilson_interval(accuracy: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share measured on `n` images.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Unlike
    the normal approximation it stays within 0..1 and is right near 100 %, where good classifiers live.
    """
    if not n:
        return 0.0, 1.0
    centre = accuracy + z * z / (2 * n)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities over the last axis, without overflow."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]
