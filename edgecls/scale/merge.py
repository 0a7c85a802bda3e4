"""The proof that every input of a plan has one row, and the rows as one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from edgecls.errors import OptionError, RunError
from edgecls.progress import Progress
from edgecls.runs import atomic_path
from edgecls.runtime.output.row import TextRows, columns, prediction_of
from edgecls.scale.folder import write_json
from edgecls.scale.options import MergeOptions
from edgecls.scale.parquet_files import reader, writer
from edgecls.scale.parts import INPUT, Footer, footer_of, part_of, read_footer, schema_of_parts
from edgecls.scale.plan import Plan
from edgecls.scale.run import expect_of
from edgecls.storage import StoreReadError

SUMMARY: Final = "summary.json"


@dataclass(frozen=True)
class MergeResult:
    """What the parts of a plan are.

    Attributes:
        inputs: of the plan; images: rows that there are.
        missing: shards without a part.
        wrong: why a part cannot be taken, by shard.
        with_errors: shards with rows that could not be read.
        others: files of the folder that are called like parts and are none of this plan's shards.
        errors, abstained: rows; labelled: answered rows with a known label; accuracy: over these, None without any.
        worker_seconds: of all parts together.
        backends: that answered; a picture between two labels may get another one from another of them.
        out: the file with all rows; empty where none was written.
        note: what did not hold up the proof, such as a summary that cannot be written.
    """

    plan: str
    inputs: int
    images: int
    missing: tuple[int, ...]
    wrong: dict[int, str]
    with_errors: tuple[int, ...]
    others: tuple[str, ...]
    errors: int
    abstained: int
    labelled: int
    accuracy: float | None
    worker_seconds: float
    backends: tuple[str, ...]
    out: str = ""
    note: str = ""
    made_by: dict[str, Any] = field(default_factory=dict)

    @property
    def again(self) -> tuple[int, ...]:
        """The shards to run again."""
        return tuple(sorted({*self.missing, *self.wrong}))

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "again": list(self.again)}


def merge(options: MergeOptions, progress: Progress = Progress()) -> MergeResult:
    """Check every part against the plan, and write all rows where none is missing.

    Every part must be of this plan, of one model and one set of options, be whole by the checksums of its pages, and
    hold the inputs of its shard, each once and in order, by number and by name. What was found is also in
    `summary.json` in the plan's folder.

    Raises:
        RunError: no plan, a damaged one, or the file cannot be written.
        OptionError: the file would lie among the parts.
    """
    plan = Plan.read(options.plan)
    if options.out and plan.folder.holds(options.out):
        raise OptionError(f"--out {options.out}: lies in the plan's folder, beside its parts; name a file elsewhere")
    progress.on_pass("rows checked", plan.n_inputs)
    footers: dict[int, Footer] = {}
    wrong: dict[int, str] = {}
    missing = []
    there = plan.folder.names()
    for shard in range(plan.n_shards):
        if part_of(shard) not in there:
            missing.append(shard)
            continue
        names = plan.table(shard).column("name")  # of a plan that is damaged no part can be proved
        try:
            footer = read_footer(plan.folder, shard)
            expect_of(plan, shard, footer)
            _expect_same_maker(plan, shard, footer, footers)
            _expect_whole(plan, shard, footer, names)
        except RunError as error:
            if isinstance(error.__cause__, StoreReadError):  # which says nothing of the part
                raise
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
        plan.folder.place,
        plan.n_inputs,
        sum(each.images for each in footers.values()),
        tuple(missing),
        wrong,
        tuple(shard for shard, footer in footers.items() if footer.errors),
        tuple(sorted(_others(plan, there))),
        sum(each.errors for each in footers.values()),
        sum(each.abstained for each in footers.values()),
        labelled,
        sum(each.right for each in footers.values()) / labelled if labelled else None,
        sum(each.seconds for each in footers.values()),
        tuple(sorted({each.backend for each in footers.values()})),
        out,
        made_by=dict(next(iter(footers.values())).made_by) if footers else {},
    )
    if not result.again:
        plan.folder.tidy()
    try:
        write_json(plan.folder, SUMMARY, result.to_json())
    except RunError as error:  # the plan may be on a medium that is only read
        return replace(result, note=str(error))
    return result


def _others(plan: Plan, names: set[str]) -> set[str]:
    """Those of the names that are like those of parts and are none of this plan's shards."""
    return {name for name in names if name.startswith("part-")} - set(map(part_of, range(plan.n_shards)))


def _expect_same_maker(plan: Plan, shard: int, footer: Footer, others: dict[int, Footer]) -> None:
    """The first part that is sound says which model all are of."""
    if not others:
        return
    first, other = next(iter(others.items()))
    differing = [name for name in other.made_by if footer.made_by.get(name) != other.made_by[name]]
    if differing:
        raise RunError(
            f"{plan.folder.shown(part_of(shard))}: was made otherwise than {part_of(first)}: they differ in "
            f"{', '.join(differing)}; remove the one that is wrong and run its shard again"
        )


def _expect_whole(plan: Plan, shard: int, footer: Footer, names: Any) -> None:
    """Every input of the shard once, in order, by number and by name; as many errors as the footer says.

    All columns are read, since each page is held to its checksum as it is read.
    """
    path = plan.folder.shown(part_of(shard))
    cure = f"remove it and run shard {shard} again"
    with reader(plan.folder, part_of(shard), cure) as file:
        _, schema = _columns(footer, file)
        if not file.schema_arrow.remove_metadata().equals(schema):  # pages have checksums, the footer has none
            raise RunError(f"{path}: its columns are not those of its model and options; {cure}")
        table = file.read(use_threads=False)
        numbers, shown, statuses = (table.column(name) for name in (INPUT, "path", "status"))
        first = plan.first(shard)
        are_inputs = numbers.to_pylist() == list(range(first, first + plan.counts[shard])) and shown.equals(names)
        errors = statuses.to_pylist().count("error")
    if not are_inputs:
        raise RunError(f"{path}: its rows are not the inputs of shard {shard}; {cure}")
    if errors != footer.errors:
        raise RunError(f"{path}: has {errors:,} error rows and says {footer.errors:,}; {cure}")


def _columns(footer: Footer, part: Any) -> tuple[list[str], Any]:
    """The members that vote in an open part, whose columns are the last ones, and the schema that it should have."""
    top_k = int(footer.made_by["top_k"])
    n_others = len(columns(top_k, ("",)))  # one for the number of the input, less one for ""
    members = part.schema_arrow.names[n_others:]
    return members, schema_of_parts(columns(top_k, members), members)


def _write(plan: Plan, footers: dict[int, Footer], out: Path) -> None:
    with reader(plan.folder, part_of(0), "run its shard again") as file:
        members, schema = _columns(footers[0], file)
    kept = schema.remove(0)
    tables = (
        group.select(kept.names) for shard in range(plan.n_shards) for group in _groups(plan, shard, footers[shard])
    )
    if out.suffix.lower() == ".parquet":
        with atomic_path(out) as partial, writer(partial, kept) as rows:
            for table in tables:
                rows.write_table(table.replace_schema_metadata(None))
        return
    kind: Any = out.suffix.lower().lstrip(".")
    with atomic_path(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        lines = TextRows(file, kind, kept.names, members)
        for table in tables:
            for values in table.to_pylist():
                lines.write(prediction_of(values, members))


def _groups(plan: Plan, shard: int, proved: Footer) -> Iterator[Any]:
    """The rows of a part, of the very one that was proved."""
    with reader(plan.folder, part_of(shard), "run its shard again") as file:
        if footer_of(file) != proved:
            path = plan.folder.shown(part_of(shard))
            raise RunError(f"{path}: a worker has replaced it meanwhile; merge again when no worker is running")
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)
