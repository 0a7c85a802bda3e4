"""Pictures of a training: learning curves and the confusion matrix, as PNG in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no display, no global state
from matplotlib.ticker import MaxNLocator, PercentFormatter

from edgecls.errors import RunError
from edgecls.records import TextFile
from edgecls.runs import FIGURES, HISTORY, METRICS, Run, atomic_path, read_json

_MOST_NUMBERED: Final = 20  # classes up to which every cell has its number
_MOST_NAMED: Final = 60  # classes up to which every row has its name
_OF_CURVES: Final = ("epoch", "phase", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
_TRAIN, _VALIDATION = "#8a8a8a", "#0b6fb8"


def draw_training(run: Run) -> list[Path]:
    """Draw a run's figures from its `history.csv` and `metrics.json`; returns the files.

    Raises:
        RunError: those are damaged, or the figures cannot be written.
    """
    metrics = read_json(run.path(METRICS))
    figures: dict[str, Figure] = {}
    if metrics["n_epochs"]:  # a classifier on features has no epochs
        kept = TextFile(run.path(HISTORY), RunError, "the run is damaged: train again")
        history = [row for _, row in kept.rows(_OF_CURVES)]
        figures["learning_curves"] = learning_curves(history, metrics["best_epoch"])
    for name in ("validation", "test"):
        if f"{name}_confusion" in metrics:
            counts = np.array(metrics[f"{name}_confusion"])
            figures[f"confusion_{name}"] = confusion(counts, metrics["labels"], name)
    paths = []
    for name, figure in figures.items():
        path = run.path(f"{FIGURES}/{name}.png")
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)
        paths.append(path)
    return paths


def learning_curves(history: list[dict[str, str]], best_epoch: int) -> Figure:
    """Loss and accuracy of training and validation over the epochs; the best epoch and the phases are marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, quantity, title in zip(figure.subplots(1, 2), ("loss", "accuracy"), ("Loss", "Accuracy"), strict=True):
        _curve(axes, history, best_epoch, quantity)
        axes.set_title(title, loc="left")
    return figure


def _curve(axes: Axes, history: list[dict[str, str]], best_epoch: int, quantity: str) -> None:
    epochs = [int(row["epoch"]) for row in history]
    dot = "o" if len(epochs) < 3 else None
    for part, colour in (("train", _TRAIN), ("val", _VALIDATION)):
        values = [float(row[f"{part}_{quantity}"]) for row in history]
        label = {"train": "training", "val": "validation"}[part]
        if (part, quantity) == ("train", "loss"):
            label += " (smoothed labels)"  # which is why it may lie above the validation's
        axes.plot(epochs, values, color=colour, label=label, linewidth=2, marker=dot)
    best = float(history[best_epoch - 1][f"val_{quantity}"])
    axes.plot([best_epoch], [best], "o", color=_VALIDATION, markersize=9, label=f"best checkpoint (epoch {best_epoch})")
    phases = [row["phase"] for row in history]
    if "head" in phases and "all" in phases:
        axes.axvline(phases.index("all") + 0.5, color="#b0b0b0", linestyle="--", label="all weights from here")
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def confusion(counts: np.ndarray[tuple[int, int], np.dtype[np.int64]], labels: list[str], split: str) -> Figure:
    """True classes down, answers across; colour is the share of the true class, numbers are images.

    Args:
        counts: (n_classes, n_classes).
    """
    n = len(labels)
    side = min(max(4.0, 2.5 + 0.45 * n), 16.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n <= _MOST_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=9)
    if n <= _MOST_NAMED:
        short = [label if len(label) <= 18 else label[:17] + "…" for label in labels]
        turned = n > 4 or max(map(len, short)) > 8
        axes.set_xticks(range(n), short, rotation=45 if turned else 0, ha="right" if turned else "center")
        axes.set_yticks(range(n), short)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"{split} split: {accuracy:.1%} of {counts.sum():,} images right", loc="left")
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    bar = figure.colorbar(picture, ax=axes, fraction=0.046, format=PercentFormatter(1.0))
    bar.set_label("share of the true class")
    return figure
