"""One row per input: CSV or JSON lines, written as the answers come."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

from edgecls.runs import atomic_path
from edgecls.runtime.classifier import Prediction

Format = Literal["csv", "jsonl"]
WriteRow = Callable[[Prediction], None]


def columns(top_k: int) -> list[str]:
    """Names of the columns, in order."""
    runners_up = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
    return ["path", "status", "label", "probability", "reason", *runners_up]


def row(prediction: Prediction) -> dict[str, Any]:
    """A prediction by column name; probabilities are rounded to six digits, None for an error."""
    answered = prediction.status == "ok"
    values: dict[str, Any] = {
        "path": prediction.path,
        "status": prediction.status,
        "label": prediction.label if answered else None,
        "probability": round(prediction.probability, 6) if answered else None,
        "reason": prediction.reason or None,
    }
    for rank, (label, probability) in enumerate(prediction.top[1:], start=2):
        values[f"label_{rank}"] = label
        values[f"probability_{rank}"] = round(probability, 6) if math.isfinite(probability) else None
    return values


@contextmanager
def open_rows(out: Path | None, format: Format, top_k: int) -> Iterator[WriteRow]:
    """Yield a function that writes one row.

    Args:
        out: the file, which appears when the block ends well; None is standard output.
        top_k: how many answers a row has.
    """
    if out is None:
        yield _writer(sys.stdout, format, top_k)
        sys.stdout.flush()
        return
    # file names are bytes to the system; those that are not UTF-8 are written back as they were
    with atomic_path(out) as partial, partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield _writer(file, format, top_k)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _writer(file: TextIO, format: Format, top_k: int) -> WriteRow:
    names = columns(top_k)
    if format == "csv":
        table = csv.DictWriter(file, names, restval="", lineterminator="\n")
        table.writeheader()
        return lambda prediction: table.writerow(row(prediction))

    def write_line(prediction: Prediction) -> None:
        values = row(prediction)
        in_order = {name: values.get(name) for name in names}
        is_unicode = _is_unicode(prediction.path)
        file.write(json.dumps(in_order, ensure_ascii=not is_unicode) + "\n")  # JSON is Unicode: escape other bytes

    return write_line
