"""The answer to one shard: a Parquet file that appears whole or not at all, and says in its footer what it is of."""

from __future__ import annotations

import importlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edgecls.errors import RunError
from edgecls.runtime.output.parquet import schema_of
from edgecls.runtime.output.row import row
from edgecls.runtime.prediction import Prediction

INPUT: Final = "input"  # the column with the number of the input among all of the plan
_FOOTER: Final = b"edgecls.part"
_ROWS: Final = 10_000  # a row group: what is in memory before it is written


@dataclass(frozen=True)
class Footer:
    """What a part says of itself.

    Attributes:
        plan: sha256 of the plan; shard: its number there.
        made_by: what decides about the rows: models by their sha256, and options.
        backend: what ran the models; others round in other places, and no two of them need be the same.
        images: rows; errors, abstained: of them.
        labelled: answered with a known label; right: of them.
        seconds: from the first read to the last row.
    """

    plan: str
    shard: int
    made_by: Mapping[str, Any]
    backend: str
    images: int
    errors: int
    abstained: int
    labelled: int
    right: int
    seconds: float


def part_of(plan: Path, shard: int) -> Path:
    """Where the answer to a shard is, or will be."""
    return plan / f"part-{shard:05d}.parquet"


def read_footer(path: Path) -> Footer:
    """What a part says of itself.

    Raises:
        RunError: it is damaged, or no part.
    """
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        said = parquet.read_metadata(path).metadata or {}
        values = json.loads(said[_FOOTER])
        return Footer(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a part of edgecls, or damaged; remove it and run its shard again") from error


class PartRows:
    """Rows of a part on their way into its file."""

    def __init__(self, partial: Path, names: Sequence[str], members: Sequence[str], first: int) -> None:
        self._arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        rows = schema_of(self._arrow, names, members)
        self._schema = self._arrow.schema([(INPUT, self._arrow.int64()), *rows])
        self._members, self._next = members, first
        self._waiting: list[dict[str, Any]] = []
        self.writer = parquet.ParquetWriter(partial, self._schema)

    def write(self, prediction: Prediction) -> None:
        self._waiting.append({INPUT: self._next, **row(prediction, self._members)})
        self._next += 1
        if len(self._waiting) == _ROWS:
            self._write_group()

    def _write_group(self) -> None:
        self.writer.write_table(self._arrow.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def finish(self, footer: Footer) -> None:
        """Write what waits, and the footer."""
        if self._waiting:
            self._write_group()
        self.writer.add_key_value_metadata({_FOOTER: json.dumps(asdict(footer)).encode()})


@contextmanager
def new_part(path: Path, names: Sequence[str], members: Sequence[str], first: int) -> Iterator[PartRows]:
    """Rows for a part, which takes its place when the block ends well: two that race for a shard leave one whole part.

    Args:
        names: columns of a row.
        first: number of the shard's first input.

    Raises:
        RunError: it cannot be written.
    """
    # of no other process on any other machine: they may share the folder, and not the numbers of processes
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        rows = PartRows(partial, names, members, first)
        try:
            yield rows
        finally:
            rows.writer.close()
        os.replace(partial, path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; make room, and run it again") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
