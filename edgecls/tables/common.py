"""What several tables share: shares in per cent, names of precisions, a table of facts."""

from __future__ import annotations

import re
from typing import Final

from rich.table import Table

from edgecls.manifest import Preprocessing
from edgecls.metrics import wilson_interval

PRECISION_NAMES: Final = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8 TensorRT",
    "int8-cpu": "INT8 CPU",
}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def percent_or_none(share: float | None) -> str | None:
    return None if share is None else percent(share)


def with_interval(share: float, n: int) -> str:
    """A share with its 95 % interval, in per cent."""
    low, high = wilson_interval(share, n)
    return f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})"


def with_errors(n: int, errors: int) -> str:
    """A number of images, and how many of them could not be read."""
    return f"{n:,}" + (f", {errors:,} could not be read (status = error)" if errors else "")


def in_lines(name: str, width: int = 16) -> str:
    """A long name in lines that end behind `-`, `_`, `/` or a space: the date of a run is not cut in its middle."""
    lines = [""]
    for word in re.findall(r".+?(?:[-_/ ]+|$)", name):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def facts_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def described(preprocessing: Preprocessing) -> str:
    height, width = preprocessing.size_hw
    return (
        f"{height} x {width} px, {preprocessing.resize}, {preprocessing.interpolation}, "
        f"crop {preprocessing.crop_fraction:g}, mean {_rgb(preprocessing.mean)}, std {_rgb(preprocessing.std)}"
    )


def _rgb(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
