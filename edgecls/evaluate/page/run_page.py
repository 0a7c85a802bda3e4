"""The page of a run: how it was trained, what its model files lose and cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from edgecls.errors import RunError
from edgecls.evaluate.page.charts import Axis, Series, chart
from edgecls.evaluate.page.confusion import ConfusionView, confusion_view
from edgecls.evaluate.page.pictures import webp
from edgecls.evaluate.page.render import PAGE, render
from edgecls.images import Pixels
from edgecls.metrics import Figure
from edgecls.options import OPTIONS_KEY
from edgecls.records import TextFile
from edgecls.runs import (
    CALIBRATION,
    CONTACT_SHEET,
    EXPORT,
    HISTORY,
    METRICS,
    RECIPE,
    Run,
    read_json,
    write_text,
)  # fmt: skip

_OF_CURVES: Final = ("epoch", "phase", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
_FEW_EPOCHS: Final = 3
_SHEET_WIDTH: Final = 1_000  # pixels


def write_run_page(run: Run, folder: Path | None = None, export: Mapping[str, Any] | None = None) -> Path:
    """Write the page of a run by what the run says of itself; returns the file.

    Args:
        folder: where the page goes; None is the run itself.
        export: what an export found that is about to be put in place; None reads the run's `export.json`.

    Raises:
        RunError: the run is damaged, or the page cannot be written.
    """
    told = export if export is not None else _read(run, EXPORT)
    manifest, metrics, recipe = run.manifest, _read(run, METRICS), _read(run, RECIPE).get(OPTIONS_KEY, {})
    calibration = (folder or run.folder) / CALIBRATION
    ranges = read_json(calibration).get("ranges", {}) if told.get("method") and calibration.is_file() else {}
    page = render(
        "run.html.j2",
        name=run.folder.resolve().name,
        model=manifest.model,
        labels=manifest.labels,
        metrics=metrics,
        shares=_shares(metrics),
        facts=_facts(metrics),
        curves=_curves(run, metrics),
        confusions=_confusions(metrics),
        export=told,
        files=_files(told) if told else {},
        given_back=_given_back(told),
        ranges=[(name, low, high) for name, (low, high) in ranges.items()],
        sheet=_sheet(run),
        recipe={name: value for name, value in recipe.items() if value not in (None, [], "")},
    )
    path = (folder or run.folder) / PAGE
    write_text(path, page)
    return path


def _read(run: Run, name: str) -> dict[str, Any]:
    return read_json(run.path(name)) if run.path(name).is_file() else {}


def _shares(metrics: Mapping[str, Any]) -> dict[str, Figure]:
    found = {}
    for split in ("validation", "test"):
        share, interval = metrics.get(f"{split}_accuracy"), metrics.get(f"{split}_interval")
        if share is not None and interval:
            found[f"{split.capitalize()} accuracy"] = Figure(share, *interval)
    return found


def _facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    if not metrics:
        return {}
    facts = {
        "Parameters": f"{metrics['n_parameters'] / 1e6:.2f} M",
        "Training time": f"{metrics['seconds']:,.0f} s",
        "F1 on validation images": f"{100 * metrics['validation_f1']:.2f} %",
    }
    if metrics.get("n_epochs"):
        facts["Best epoch"] = f"{metrics['best_epoch']} of {metrics['n_epochs']}"
    return facts


def _curves(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Loss and accuracy over the epochs; a line where all weights begin to learn."""
    if not metrics.get("n_epochs"):
        return {}
    rows = [row for _, row in TextFile(run.path(HISTORY), RunError, "train the run again").rows(_OF_CURVES)]
    epochs, phases = [float(row["epoch"]) for row in rows], [row["phase"] for row in rows]
    changes = [epochs[i] - 0.5 for i, (one, other) in enumerate(itertools.pairwise(phases), start=1) if one != other]

    def curve(quantity: str, is_share: bool) -> Any:
        values = [[float(row[f"{part}_{quantity}"]) for row in rows] for part in ("train", "val")]
        series = [Series(title, epochs, each) for title, each in zip(("training", "validation"), values, strict=True)]
        settled = [value for each in values for value in (each[1:] if len(each) > _FEW_EPOCHS else each)]
        high = None if is_share else 1.1 * max(settled)  # the first loss may be many times the others
        axes = Axis("epoch", min(epochs), max(epochs)), Axis(quantity, high=high, is_share=is_share)
        return chart(f"{quantity.capitalize()} over the epochs", *axes, series, marks=changes)

    return {
        "Accuracy over the epochs. Training pictures are varied, which makes them harder.": curve("accuracy", True),
        "Loss over the epochs. That of training is of smoothed labels.": curve("loss", False),
    }


def _confusions(metrics: Mapping[str, Any]) -> dict[str, ConfusionView]:
    found = {}
    for split in ("validation", "test"):
        if f"{split}_confusion" in metrics:
            matrix = np.array(metrics[f"{split}_confusion"])
            counts = {(int(row), int(column)): int(matrix[row, column]) for row, column in np.argwhere(matrix)}
            found[split] = confusion_view(metrics["labels"], counts)
    return found


def _files(export: Mapping[str, Any]) -> dict[str, list[str]]:
    """Rows of the table of model files, one cell for each file."""
    files = list(export["precisions"].values())

    def percent(name: str) -> list[str]:
        return ["" if each[name] is None else f"{100 * each[name]:.2f} %" for each in files]

    def of_pair(text: str) -> list[str]:
        return [text.format(**each["paired"]) if each["paired"] else "" for each in files]

    rows = {
        "accuracy": percent("accuracy"),
        "same answer as FP32": percent("agreement"),
        "only FP32 is right": of_pair("{broken}"),
        "only this is right": of_pair("{fixed}"),
        "p (McNemar)": of_pair("{p_value:.2g}"),
        "calibration error": percent("ece_after"),
        "img/s on this CPU": [f"{each['images_per_second']:,.0f}" for each in files],
        "MB": [f"{each['bytes'] / 1e6:.2f}" for each in files],
    }
    return {name: cells for name, cells in rows.items() if any(cells)}


def _given_back(export: Mapping[str, Any]) -> list[str]:
    return sorted({name for each in export.get("precisions", {}).values() for name in each["given_back"]})


def _sheet(run: Run) -> str:
    """The contact sheet, small enough for a page; empty where there is none."""
    path = run.path(CONTACT_SHEET)
    picture = cv2.imread(str(path)) if path.is_file() else None
    if picture is None:
        return ""
    height, width = picture.shape[:2]
    if width > _SHEET_WIDTH:
        size = (_SHEET_WIDTH, round(height * _SHEET_WIDTH / width))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    rgb: Pixels = np.ascontiguousarray(picture[..., ::-1]).astype(np.uint8)
    return webp(rgb)
