"""A plan: every input of a large prediction, in shards, written down before the first one is answered.

`inputs.parquet` has a row for each input and a row group for each shard; `plan.json` says how many there are and the
sha256 of each shard's rows. So any number of processes can each take some shards, without speaking to one another, and
`merge` can prove afterwards that every input has one row.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from edgecls import __version__
from edgecls.decoding.pillow import READABLE
from edgecls.errors import DatasetError, OptionError, RunError
from edgecls.images import has_image_suffix
from edgecls.names import is_text
from edgecls.prefetch import batches
from edgecls.progress import Progress
from edgecls.runtime.input.stored import StoredInput, inputs_of, is_tar, open_source
from edgecls.scale.folder import PlanFolder, open_folder, read_json, write_json
from edgecls.scale.options import PlanOptions
from edgecls.scale.parquet_files import arrow, reader, writer
from edgecls.storage import StoredFile

PLAN: Final = "plan.json"
INPUTS: Final = "inputs.parquet"
_SCHEMA: Final = 1
_CHUNK: Final = 65_536  # inputs that are Python objects at a time
_COLUMNS: Final = ("name", "file", "offset", "size", "modified_ns", "reason")
_CURE: Final = "make another one with: edgecls plan SOURCE -o FOLDER"


@dataclass(frozen=True)
class Plan:
    """A plan that was written.

    Attributes:
        source: folder or address that the names are relative to.
        counts: inputs by shard.
        hashes: sha256 of the inputs by shard.
    """

    folder: PlanFolder
    source: str
    counts: tuple[int, ...]
    hashes: tuple[str, ...]

    @property
    def n_inputs(self) -> int:
        return sum(self.counts)

    @property
    def n_shards(self) -> int:
        return len(self.counts)

    @cached_property
    def sha256(self) -> str:
        """Of all inputs."""
        return hashlib.sha256("".join(self.hashes).encode()).hexdigest()

    def first(self, shard: int) -> int:
        """The number of a shard's first input among all."""
        return sum(self.counts[:shard])

    @classmethod
    def read(cls, place: str | Path) -> Plan:
        """Read the plan in a folder, or at an address.

        Raises:
            RunError: not there, or damaged.
            EdgeclsError: as `open_folder`.
        """
        folder = open_folder(place)
        if not folder.has(PLAN):
            raise RunError(f"{place}: no plan in it; make one with: edgecls plan SOURCE -o {place}")
        values = read_json(folder, PLAN, _CURE)
        try:
            if values["schema"] != _SCHEMA:
                raise ValueError(f"schema {values['schema']}, this edgecls reads {_SCHEMA}")
            shards = [(each["inputs"], each["sha256"]) for each in values["shards"]]
            counts, hashes = zip(*shards, strict=True)
            if not all(type(count) is int and count > 0 for count in counts) or not all(map(str.isalnum, hashes)):
                raise ValueError("shards: expected a count and a sha256 each")
            if values["inputs"] != sum(counts):
                raise ValueError(f"{values['inputs']} inputs, and {sum(counts):,} in its shards")
            return cls(folder, str(values["source"]), counts, hashes)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{folder.shown(PLAN)}: damaged ({error}); {_CURE}") from error

    @cached_property
    def _metadata(self) -> Any:
        """Of the inputs: thousands of shards are listed in it, and each of them is opened alone."""
        with reader(self.folder, INPUTS, _CURE) as file:
            return file.metadata

    def table(self, shard: int) -> Any:
        """The inputs of one shard as an Arrow table.

        Raises:
            RunError: the file is not the one that the plan is about.
        """
        with reader(self.folder, INPUTS, _CURE, self._metadata) as file:
            is_whole = file.num_row_groups == self.n_shards
            table = file.read_row_group(shard, use_threads=False) if is_whole else None
        if table is None or table.column_names != list(_COLUMNS) or _hash(table) != self.hashes[shard]:
            raise RunError(f"{self.folder.shown(INPUTS)}: shard {shard} is not the one that {PLAN} is about; {_CURE}")
        return table

    def inputs(self, shard: int) -> list[StoredInput]:
        """The inputs of one shard, in order."""
        columns = [column.to_pylist() for column in self.table(shard).columns]
        return [StoredInput(*values) for values in zip(*columns, strict=True)]


@dataclass(frozen=True)
class PlanResult:
    """What `edgecls plan` found.

    Attributes:
        skipped: visible files that are not named like an image or a tar file.
        unreadable: inputs of which it is known already that they cannot be read.
        bytes: of all inputs.
    """

    plan: Plan
    bytes: int
    skipped: int
    unreadable: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": self.plan.folder.place, "source": self.plan.source, "inputs": self.plan.n_inputs,
            "shards": self.plan.n_shards, "bytes": self.bytes, "skipped": self.skipped,
            "unreadable": self.unreadable, "seconds": self.seconds,
            "sha256": self.plan.sha256,
        }  # fmt: skip


def make_plan(options: PlanOptions, progress: Progress = Progress()) -> PlanResult:
    """List the inputs of a source and write them down in shards.

    A million inputs take about a minute and 200 MB: what is in memory is Arrow's columns.

    Raises:
        DatasetError: the source cannot be listed, or has no image.
        OptionError: more shards than inputs.
        RunError: there is a plan already, or it cannot be written.
        MissingExtra: pyarrow is not installed.
    """
    started = time.perf_counter()
    pyarrow = arrow()
    folder = open_folder(options.out)
    _expect_free(folder)
    store, files = open_source(options.source)
    skipped = 0

    def counted() -> Iterator[StoredFile]:
        nonlocal skipped
        for file in files():
            progress.on_images(1)
            skipped += not (file.reason or is_tar(file.name) or has_image_suffix(file.name))
            yield file

    progress.on_pass("files", None)
    chunks = [_table(pyarrow, chunk) for chunk in batches(inputs_of(store, counted()), _CHUNK)]
    if not chunks:
        raise DatasetError(f"{options.source}: no images below it; expected {READABLE} files, or tar files with them")
    whole = pyarrow.concat_tables(chunks)
    n = whole.num_rows
    n_shards = options.shards or -(-n // options.shard_size)
    if n_shards > n:
        raise OptionError(f"--shards {n_shards}: there are {n:,} inputs; expected that many shards at most")
    bounds = [n * shard // n_shards for shard in range(n_shards + 1)]
    shards = [whole.slice(low, high - low) for low, high in pairwise(bounds)]
    hashes = [_hash(shard) for shard in shards]
    with folder.writing(INPUTS) as partial, writer(partial, whole.schema) as rows:
        for shard in shards:
            rows.write_table(shard, row_group_size=shard.num_rows)
    _expect_free(folder)  # somebody else may have planned into it meanwhile
    plan = Plan(folder, store.root, tuple(shard.num_rows for shard in shards), tuple(hashes))
    listed = [{"inputs": count, "sha256": each} for count, each in zip(plan.counts, hashes, strict=True)]
    write_json(folder, PLAN, {
        "schema": _SCHEMA, "edgecls": __version__, "source": plan.source, "inputs": n, "shards": listed
    })  # fmt: skip
    _expect_ours(plan)
    n_bytes = sum(int(chunk.column("size").to_numpy().sum()) for chunk in chunks)
    n_faulty = sum(reason != "" for chunk in chunks for reason in chunk.column("reason").to_pylist())
    return PlanResult(plan, n_bytes, skipped, n_faulty, time.perf_counter() - started)


def _expect_free(folder: PlanFolder) -> None:
    """Refuse a folder with something in it, but for the inputs of a plan that was killed before it was whole."""
    try:
        is_free = folder.names() <= {INPUTS}
    except RunError as error:
        raise RunError(f"--out {error}; name another folder") from error
    if not is_free:
        raise RunError(f"--out {folder.place}: there is something in it already; name another folder")


def _expect_ours(plan: Plan) -> None:
    """Refuse a plan that another process has written over, in whole or in part.

    Raises:
        RunError: one has.
    """
    with reader(plan.folder, INPUTS, _CURE) as file:
        n_inputs = file.metadata.num_rows
    if Plan.read(plan.folder.place).sha256 != plan.sha256 or n_inputs != plan.n_inputs:
        raise RunError(f"--out {plan.folder.place}: somebody else has planned into it meanwhile; name another folder")


def _table(pyarrow: Any, inputs: Sequence[StoredInput]) -> Any:
    rows = [each if is_text(each.name) else _unnamed(each) for each in inputs]
    schema = pyarrow.schema([
        (name, pyarrow.int64() if name in ("offset", "size", "modified_ns") else pyarrow.string()) for name in _COLUMNS
    ])  # fmt: skip
    return pyarrow.table({name: [getattr(row, name) for row in rows] for name in _COLUMNS}, schema=schema)


def _unnamed(each: StoredInput) -> StoredInput:
    """An input whose name is no text, which Parquet cannot hold: it gets its row, with the bytes spelt out."""
    name, file = (text.encode(errors="backslashreplace").decode() for text in (each.name, each.file))
    return replace(each, name=name, file=file, reason="its name is not UTF-8, which a plan cannot hold; rename it")


def _hash(table: Any) -> str:
    digest = hashlib.sha256()
    for name in _COLUMNS:
        column = table.column(name)
        if str(column.type) == "int64":
            digest.update(column.to_numpy().astype("<i8").tobytes())
        else:
            digest.update("\0".join(column.to_pylist()).encode())
        digest.update(b"\0\0")
    return digest.hexdigest()
