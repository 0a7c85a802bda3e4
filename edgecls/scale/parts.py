"""The answer to one shard: a Parquet file that appears whole or not at all, and says in its footer what it is of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from edgecls.runtime.output.parquet import schema_of
from edgecls.runtime.output.row import row
from edgecls.runtime.prediction import Prediction
from edgecls.scale.folder import PlanFolder
from edgecls.scale.parquet_files import arrow, reader, writer

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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Footer:
        """What was written.

        Raises:
            ValueError, KeyError: it is none, or damaged.
        """
        if not values:
            raise ValueError("not a part of edgecls")
        footer = cls(**{each.name: values[each.name] for each in fields(cls)})
        counts = (footer.shard, footer.images, footer.errors, footer.abstained, footer.labelled, footer.right)
        if not all(type(count) is int and count >= 0 for count in counts) or type(footer.made_by) is not dict:
            raise ValueError("its counts are no numbers")
        return footer


def part_of(shard: int) -> str:
    """The file with the answer to a shard, in the plan's folder."""
    return f"part-{shard:05d}.parquet"


def in_ranges(shards: Iterable[int]) -> str:
    """Numbers as `--shard` takes them: `0-4,7`."""
    ranges: list[list[int]] = []
    for shard in sorted(shards):
        if ranges and shard == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], shard]
        else:
            ranges.append([shard])
    return ",".join("-".join(map(str, each)) for each in ranges)


def read_footer(folder: PlanFolder, shard: int) -> Footer:
    """What a part says of itself.

    Raises:
        RunError: it is damaged, or no part.
    """
    with reader(folder, part_of(shard), "remove it and run its shard again") as file:
        return footer_of(file)


def footer_of(file: Any) -> Footer:
    """The same of a part that is open.

    Raises:
        ValueError, KeyError: it is none, or damaged.
    """
    said = (file.metadata.metadata or {}).get(_FOOTER)
    return Footer.of(json.loads(said or "{}"))


def schema_of_parts(names: Sequence[str], members: Sequence[str]) -> Any:
    """The Arrow schema of a part whose rows have these columns."""
    pyarrow = arrow()
    return pyarrow.schema([(INPUT, pyarrow.int64()), *schema_of(pyarrow, names, members)])


class PartRows:
    """Rows of a part on their way into its file."""

    def __init__(self, partial: Path, names: Sequence[str], members: Sequence[str], first: int) -> None:
        self._schema = schema_of_parts(names, members)
        self._members, self._next = members, first
        self._waiting: list[dict[str, Any]] = []
        self.writer = writer(partial, self._schema)

    def write(self, prediction: Prediction) -> None:
        self._waiting.append({INPUT: self._next, **row(prediction, self._members)})
        self._next += 1
        if len(self._waiting) == _ROWS:
            self._write_group()

    def _write_group(self) -> None:
        self.writer.write_table(arrow().Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []

    def finish(self, footer: Footer) -> None:
        """Write what waits, and the footer."""
        if self._waiting:
            self._write_group()
        self.writer.add_key_value_metadata({_FOOTER: json.dumps(asdict(footer)).encode()})


@contextmanager
def new_part(
    folder: PlanFolder, shard: int, names: Sequence[str], members: Sequence[str], first: int
) -> Iterator[PartRows]:
    """Rows for a part, which takes its place when the block ends well: two that race for a shard leave one whole part.

    Args:
        names: columns of a row.
        first: number of the shard's first input.

    Raises:
        RunError: it cannot be written.
    """
    with folder.writing(part_of(shard)) as partial:
        rows = PartRows(partial, names, members, first)
        try:
            yield rows
        finally:
            rows.writer.close()
