"""One row per input: CSV, JSON lines or Parquet, written as the answers come; and going on where a kill cut off."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Protocol, TextIO, cast, get_args

from edgecls.errors import MissingExtra, OptionError, RunError
from edgecls.runs import atomic_path, write_json
from edgecls.runtime.prediction import Prediction, Status

try:
    import fcntl
except ImportError:  # Windows locks files in another way, and this is a second line of defence
    fcntl = None  # type: ignore[assignment]

Format = Literal["csv", "jsonl", "parquet"]

_PARQUET_ROWS: Final = 10_000  # a row group: what is in memory before it is written


@dataclass(frozen=True)
class RowsOptions:
    """Attributes:
    out: the file, which appears when the last row is written; None is standard output.
    format: of the rows; None is what the name of the file says, else csv.
    resume: go on with the rows that a killed run left.
    """

    out: Path | None = None
    format: Format | None = None
    resume: bool = False

    @property
    def kind(self) -> Format:
        """The format, told by the name of the file where it was not given."""
        suffix = self.out.suffix.lower().lstrip(".") if self.out else ""
        return self.format or (cast(Format, suffix) if suffix in get_args(Format) else "csv")

    def __post_init__(self) -> None:
        suffix = self.out.suffix.lower().lstrip(".") if self.out else ""
        if self.format and suffix in get_args(Format) and suffix != self.format:
            raise OptionError(
                f"--format {self.format} with --out {self.out}: leave one out, or name the file .{self.format}"
            )
        if self.resume and self.out is None:
            raise OptionError("--resume: rows on standard output cannot be gone on with; give --out a file name")
        if self.kind == "parquet" and (self.resume or self.out is None):
            raise OptionError("--format parquet: has no rows before its end; give --out a file name, and no --resume")


class Rows(Protocol):
    """Where rows go."""

    def kept(self) -> Iterator[Prediction]:
        """The rows of the run that is gone on with, in order; to be exhausted before the first `write`."""
        ...

    def write(self, prediction: Prediction) -> None: ...

    def flush(self) -> None:
        """What was written so far survives a kill of this process."""
        ...


def partial_of(out: Path) -> Path:
    """Where rows are until the last one is written."""
    out = out.resolve()
    return out.with_name(f"{out.name}.partial")


def columns(top_k: int, members: Sequence[str] = ()) -> list[str]:
    """Names of the columns, in order."""
    runners_up = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
    votes = ["agreement", "entropy", *members] if members else []
    return ["path", "status", "label", "probability", "reason", *runners_up, *votes]


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


@contextmanager
def open_rows(
    options: RowsOptions, top_k: int, members: Sequence[str] = (), made_by: Mapping[str, Any] | None = None
) -> Iterator[Rows]:
    """Open the rows of a run; the file appears when the block ends well.

    Until then the rows are in `<out>.partial`. A kill leaves them there, and so do Ctrl-C and a full disk; other
    errors remove them. `<out>.partial.json` says what made them, so that no two models' rows are mixed.

    Args:
        top_k: how many answers a row has.
        members: of an ensemble, the names of its members.
        made_by: what decides about the rows: models and options, as JSON values.

    Raises:
        RunError: the file cannot be written, or another process is writing it.
        OptionError: the rows that are to be gone on with were made otherwise.
    """
    names = columns(top_k, members)
    if len(set(names)) < len(names):
        raise OptionError(f"a member is named like a column of the rows: {', '.join(members)}; rename its folder")
    if options.out is None:
        yield _TextRows(sys.stdout, options.kind, names, members)
        sys.stdout.flush()
        return
    out = options.out.resolve()  # a link is written through, not replaced
    if options.kind == "parquet":
        with atomic_path(out) as partial, _ParquetRows(partial, names, members) as rows:
            yield rows
        return
    with _RowFile(out, options, names, members, dict(made_by or {})) as kept_rows:
        yield kept_rows


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


class _TextRows:
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


class _RowFile:
    """A text file of rows that a killed process leaves in a state to go on from."""

    def __init__(
        self, out: Path, options: RowsOptions, names: Sequence[str], members: Sequence[str], made_by: dict[str, Any]
    ) -> None:
        self._out, self._format, self._names, self._members = out, options.kind, names, members
        self._partial = partial_of(out)
        self._record = self._partial.with_name(f"{self._partial.name}.json")
        made_by = {"columns": list(names), "format": options.kind, **made_by}
        self._made_by: dict[str, Any] = json.loads(json.dumps(made_by))  # as it will be read back
        self._resumes = options.resume
        self._file: BinaryIO
        self._rows: _TextRows | None = None

    def __enter__(self) -> _RowFile:
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._file = cast(BinaryIO, self._partial.open("r+b" if self._partial.exists() else "w+b"))
            # killed before its first row, it may have no record either
            self._resumes = self._resumes and self._partial.stat().st_size > 0
        except OSError as error:
            raise RunError(f"cannot write {self._out}: {error.strerror or error}") from error
        self._lock()
        if self._resumes:
            self._check_record()
        else:
            self._file.truncate(0)
            write_json(self._record, self._made_by)
        return self

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RunError(
                f"{self._partial}: another process is writing these rows; wait for it, or stop it"
            ) from error

    def _check_record(self) -> None:
        try:
            known = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._file.close()
            raise OptionError(
                f"--resume: {self._record.name} is missing or damaged, so what made the rows of the stopped run is "
                "unknown; start again without --resume"
            ) from error
        differing = sorted(name for name in {*known, *self._made_by} if known.get(name) != self._made_by.get(name))
        if differing:
            self._file.close()
            raise OptionError(
                f"--resume: the rows in {self._partial} were made otherwise, they differ in {', '.join(differing)}; "
                "give the same models and options, or start again without --resume"
            )

    def kept(self) -> Iterator[Prediction]:
        end = 0
        if self._resumes:
            found = _csv_rows(self._file, self._names) if self._format == "csv" else _json_rows(self._file)
            for values, end_of_row in found:
                end = end_of_row
                if values is not None:
                    yield _prediction(values, self._members)
            self._file.seek(end)
            self._file.truncate()  # what follows is a row that was cut off
        self._open(has_header=end > 0)

    def _open(self, has_header: bool) -> None:
        # file names are bytes to the system; those that are not UTF-8 are written back as they were
        text = open(self._file.fileno(), "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=False)  # noqa: SIM115
        self._text = text
        self._rows = _TextRows(text, self._format, self._names, self._members, has_header)

    def write(self, prediction: Prediction) -> None:
        if self._rows is None:
            for _ in self.kept():
                pass
        assert self._rows is not None
        try:
            self._rows.write(prediction)
        except OSError as error:
            raise self._unwritable(error) from error

    def flush(self) -> None:
        try:
            if self._rows:
                self._rows.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write {self._out}: {error.strerror or error}; {self._partial.name} keeps the rows so far: "
            "make room, then add --resume"
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        is_full = isinstance(error, RunError) and isinstance(error.__cause__, OSError)
        try:
            if error is None:
                if self._rows is None:
                    self._open(has_header=False)
                self.flush()
                os.replace(self._partial, self._out)
            elif isinstance(error, Exception) and not is_full:
                self._partial.unlink(missing_ok=True)
            else:
                with suppress(RunError):
                    self.flush()
                return
            self._record.unlink(missing_ok=True)
        except OSError as failed:
            raise self._unwritable(failed) from failed
        finally:
            with suppress(OSError):
                self._file.close()


def _csv_rows(file: BinaryIO, names: Sequence[str]) -> Iterator[tuple[dict[str, str] | None, int]]:
    """The whole rows of a CSV that may end anywhere, each with the offset of its end; None for the header."""
    file.seek(0)
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for line in file:
            if not line.endswith(b"\n"):
                return
            read += len(line)
            yield line.decode("utf-8", errors="surrogateescape")

    reader = csv.reader(lines(), strict=True)  # strict: a row that ends within quotes is an error
    with suppress(csv.Error):
        for number, cells in enumerate(reader):
            if len(cells) != len(names):
                return
            yield (dict(zip(names, cells, strict=True)) if number else None), read


def _json_rows(file: BinaryIO) -> Iterator[tuple[dict[str, Any] | None, int]]:
    file.seek(0)
    read = 0
    for line in file:
        if not line.endswith(b"\n"):
            return
        read += len(line)
        yield json.loads(line), read


def _prediction(values: Mapping[str, Any], members: Sequence[str]) -> Prediction:
    """A row read back; probabilities have six digits."""
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


class _ParquetRows:
    """Rows as a Parquet table, a row group at a time."""

    def __init__(self, file: Path, names: Sequence[str], members: Sequence[str]) -> None:
        try:
            self._arrow: Any = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise MissingExtra("--format parquet", "parquet") from error
        numeric = ("probability", "agreement", "entropy")
        kinds = {n: self._arrow.float64() if n.partition("_")[0] in numeric else self._arrow.string() for n in names}
        kinds.update(dict.fromkeys(members, self._arrow.string()))
        self._schema = self._arrow.schema(list(kinds.items()))
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

    def __enter__(self) -> _ParquetRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None and self._waiting:
            self._write_group()
        self._writer.close()
