"""Rows as a Parquet table."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from edgecls.errors import MissingExtra
from edgecls.runtime.output.row import row
from edgecls.runtime.prediction import Prediction

_PARQUET_ROWS: Final = 10_000  # a row group: what is in memory before it is written


def schema_of(arrow: Any, names: Sequence[str], members: Sequence[str]) -> Any:
    """The Arrow schema of rows with these columns."""
    numeric = ("probability", "agreement", "entropy")
    kinds = {n: arrow.float64() if n.partition("_")[0] in numeric else arrow.string() for n in names}
    kinds.update(dict.fromkeys(members, arrow.string()))
    return arrow.schema(list(kinds.items()))


class ParquetRows:
    """Rows as a Parquet table, a row group at a time."""

    def __init__(self, file: Path, names: Sequence[str], members: Sequence[str]) -> None:
        try:
            self._arrow: Any = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise MissingExtra("--format parquet", "parquet") from error
        self._schema = schema_of(self._arrow, names, members)
        self._members = members
        self._waiting: list[dict[str, Any]] = []
        self._writer = parquet.ParquetWriter(file, self._schema)

    def kept(self) -> Iterator[Prediction]:
        return iter(())

    def write(self, prediction: Prediction) -> None:
        values = row(prediction, self._members)
        values["path"] = prediction.path.encode(errors="backslashreplace").decode()  # Parquet is Unicode
        self._waiting.append(values)
        if len(self._waiting) == _PARQUET_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def flush(self) -> None: ...

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None and self._waiting:
            self._write_group()
        self._writer.close()
