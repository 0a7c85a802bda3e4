"""A prediction as a row of a table, and back; CSV and JSON lines as text."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO, cast, get_args

from edgecls.errors import OptionError
from edgecls.runtime.options import Format
from edgecls.runtime.prediction import Prediction, Status


def columns(top_k: int, members: Sequence[str] = ()) -> list[str]:
    """Names of the columns, in order."""
    runners_up = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
    votes = ["agreement", "entropy", *members] if members else []
    return ["path", "status", "label", "probability", "reason", *runners_up, *votes]


def expect_distinct(names: Sequence[str], members: Sequence[str]) -> None:
    """Refuse columns of which two have one name.

    Raises:
        OptionError: a member is named like a column.
    """
    if len(set(names)) < len(names):
        raise OptionError(f"a member is named like a column of the rows: {', '.join(members)}; rename its folder")


def row(prediction: Prediction, members: Sequence[str] = ()) -> dict[str, Any]:
    """A prediction by column name; probabilities are rounded to six digits, None for an error."""
    values: dict[str, Any] = {
        "path": prediction.path,
        "status": prediction.status,
        "label": prediction.label or None,
        "probability": _rounded(prediction.probability),
        "reason": prediction.reason or None,
    }
    for rank, (label, probability) in enumerate(prediction.top[1:], start=2):
        values[f"label_{rank}"] = label
        values[f"probability_{rank}"] = _rounded(probability)
    if prediction.agreement is not None and prediction.entropy is not None:
        values["agreement"] = _rounded(prediction.agreement)
        values["entropy"] = _rounded(prediction.entropy)
        values.update(zip(members, prediction.members, strict=True))
    return values


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def prediction_of(values: Mapping[str, Any], members: Sequence[str]) -> Prediction:
    """A row read back; probabilities have six digits.

    Raises:
        ValueError, KeyError, TypeError: it is damaged.
    """
    if values["status"] not in get_args(Status):
        raise ValueError(f"status {values['status']!r}")
    top = [(values["label"], _number(values["probability"]))] if values["status"] == "ok" else []
    for rank in range(2, len(values)):
        if not values.get(f"label_{rank}"):
            break
        top.append((values[f"label_{rank}"], _number(values[f"probability_{rank}"])))
    has_votes = bool(members) and values["status"] != "error"
    return Prediction(
        values["path"],
        cast(Status, values["status"]),
        values["label"] or "",
        _number(values["probability"]),
        values["reason"] or "",
        tuple(top),
        _number(values["agreement"]) if has_votes else None,
        _number(values["entropy"]) if has_votes else None,
        tuple(values[name] for name in members) if has_votes else (),
    )


def _number(value: Any) -> float:
    return float(value) if value not in ("", None) else math.nan


class CsvTable:
    """Rows of a CSV whose lines end with a line feed.

    The csv module quotes a carriage return only where lines end with one, and reads an unquoted one as a line's end.
    """

    def __init__(self, file: TextIO) -> None:
        self._plain = csv.writer(file, lineterminator="\n")
        self._quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(self, cells: Sequence[Any]) -> None:
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
        (self._quoted if has_return else self._plain).writerow(cells)


class TextRows:
    """CSV or JSON lines into an open file."""

    def __init__(
        self, file: TextIO, format: Format, names: Sequence[str], members: Sequence[str], has_header: bool = False
    ) -> None:
        self._file, self._names, self._members = file, names, members
        self._table = CsvTable(file) if format == "csv" else None
        if self._table and not has_header:
            self._table.write(names)

    def kept(self) -> Iterator[Prediction]:
        return iter(())

    def write(self, prediction: Prediction) -> None:
        values = row(prediction, self._members)
        if self._table:
            self._table.write([values.get(name) for name in self._names])
            return
        in_order = {name: values.get(name) for name in self._names}
        # JSON is Unicode: names that are other bytes are escaped
        self._file.write(json.dumps(in_order, ensure_ascii=not _is_unicode(prediction.path)) + "\n")

    def flush(self) -> None:
        self._file.flush()


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
