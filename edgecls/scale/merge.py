"""The proof that every input of a plan has one row, and the rows as one file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgecls.errors import RunError
from edgecls.progress import Progress
from edgecls.runs import atomic_path, write_json
from edgecls.runtime.output.row import TextRows, columns, prediction_of
from edgecls.scale.options import MergeOptions
from edgecls.scale.parts import INPUT, Footer, part_of, read_footer
from edgecls.scale.plan import Plan
from edgecls.scale.run import expect_of

SUMMARY: Final = "summary.json"


@dataclass(frozen=True)
class MergeResult:
    """What the parts of a plan are.

    Attributes:
        inputs: of the plan; images: rows that there are.
        missing: shards without a part.
        wrong: why a part cannot be taken, by shard.
        errors, abstained: rows; labelled: answered rows with a known label; accuracy: over these, None without any.
        worker_seconds: of all parts together.
        backends: that answered; a picture between two labels may get another one from another of them.
        out: the file with all rows; empty where none was written.
    """

    plan: str
    inputs: int
    images: int
    missing: tuple[int, ...]
    wrong: dict[int, str]
    errors: int
    abstained: int
    labelled: int
    accuracy: float | None
    worker_seconds: float
    backends: tuple[str, ...]
    out: str = ""
    made_by: dict[str, Any] = field(default_factory=dict)

    @property
    def again(self) -> tuple[int, ...]:
        """The shards to run again."""
        return tuple(sorted({*self.missing, *self.wrong}))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "again": list(self.again)}


def merge(options: MergeOptions, progress: Progress = Progress()) -> MergeResult:
    """Check every part against the plan, and write all rows where none is missing.

    Every part must be of this plan, of one model and one set of options, and hold the inputs of its shard, each once
    and in order, by number and by name. What was found is also in `summary.json` in the plan's folder.

    Raises:
        RunError: no plan, or a file cannot be written.
    """
    plan = Plan.read(options.plan)
    progress.on_pass("rows checked", plan.n_inputs)
    footers: dict[int, Footer] = {}
    wrong: dict[int, str] = {}
    missing = []
    for shard in range(plan.n_shards):
        if not part_of(plan.folder, shard).exists():
            missing.append(shard)
            continue
        try:
            footer = read_footer(part_of(plan.folder, shard))
            expect_of(plan, shard, footer)
            _expect_same_maker(plan, shard, footer, footers)
            _expect_whole(plan, shard, footer)
        except RunError as error:
            wrong[shard] = str(error)
            continue
        footers[shard] = footer
        progress.on_images(footer.images)
    out = ""
    if not missing and not wrong and options.out:
        _write(plan, footers, options.out)
        out = str(options.out)
    labelled = sum(each.labelled for each in footers.values())
    result = MergeResult(
        str(plan.folder),
        plan.n_inputs,
        sum(each.images for each in footers.values()),
        tuple(missing),
        wrong,
        sum(each.errors for each in footers.values()),
        sum(each.abstained for each in footers.values()),
        labelled,
        sum(each.right for each in footers.values()) / labelled if labelled else None,
        sum(each.seconds for each in footers.values()),
        tuple(sorted({each.backend for each in footers.values()})),
        out,
        dict(next(iter(footers.values())).made_by) if footers else {},
    )
    write_json(plan.folder / SUMMARY, result.to_json())
    return result


def _expect_same_maker(plan: Plan, shard: int, footer: Footer, others: dict[int, Footer]) -> None:
    """The first part that is sound says which model all are of."""
    if not others:
        return
    first, other = next(iter(others.items()))
    differing = [name for name in other.made_by if footer.made_by.get(name) != other.made_by[name]]
    if differing:
        raise RunError(
            f"{part_of(plan.folder, shard)}: was made otherwise than {part_of(plan.folder, first).name}: they differ "
            f"in {', '.join(differing)}; remove the one that is wrong and run its shard again"
        )


def _expect_whole(plan: Plan, shard: int, footer: Footer) -> None:
    """Every input of the shard once, in order, by number and by name; as many errors as the footer says."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    path = part_of(plan.folder, shard)
    cure = f"remove it and run shard {shard} again"
    try:
        table = parquet.read_table(path, columns=[INPUT, "path", "status"])
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged ({str(error).splitlines()[0]}); {cure}") from error
    first = plan.first(shard)
    numbers = table.column(INPUT).to_pylist()
    expected = plan.table(shard).column("name")
    errors = table.column("status").to_pylist().count("error")
    if numbers != list(range(first, first + plan.counts[shard])) or not table.column("path").equals(expected):
        raise RunError(f"{path}: its rows are not the inputs of shard {shard}; {cure}")
    if errors != footer.errors:
        raise RunError(f"{path}: has {errors:,} error rows and says {footer.errors:,}; {cure}")


def _write(plan: Plan, footers: dict[int, Footer], out: Path) -> None:
    parquet: Any = importlib.import_module("pyarrow.parquet")
    schema = parquet.read_schema(part_of(plan.folder, 0)).remove_metadata()
    kept = [name for name in schema.names if name != INPUT]
    tables = (
        group.select(kept) for shard in range(plan.n_shards) for group in _groups(parquet, part_of(plan.folder, shard))
    )
    if out.suffix.lower() == ".parquet":
        with atomic_path(out) as partial, parquet.ParquetWriter(partial, schema.remove(0)) as writer:
            for table in tables:
                writer.write_table(table.replace_schema_metadata(None))
        return
    made = next(iter(footers.values())).made_by
    members = kept[len(columns(int(made["top_k"]), ("",))) - 1 :] if "agreement" in kept else []
    kind: Any = out.suffix.lower().lstrip(".")
    with atomic_path(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        rows = TextRows(file, kind, kept, members)
        for table in tables:
            for values in table.to_pylist():
                rows.write(prediction_of(values, members))


def _groups(parquet: Any, path: Path) -> Iterator[Any]:
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)
