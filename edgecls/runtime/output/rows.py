"""One row per input: CSV, JSON lines or Parquet, written as the answers come; and going on where a kill cut off."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from edgecls.errors import OptionError, RunError
from edgecls.runs import atomic_path, lock, write_json
from edgecls.runtime.options import RowsOptions
from edgecls.runtime.output.parquet import ParquetRows
from edgecls.runtime.output.row import TextRows, columns, expect_distinct, prediction_of
from edgecls.runtime.prediction import Prediction


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


@contextmanager
def open_rows(
    options: RowsOptions, top_k: int, members: Sequence[str] = (), made_by: Mapping[str, Any] | None = None
) -> Iterator[Rows]:
    """Open the rows of a run; the file appears when the block ends well.

    Until then the rows are in `<out>.partial`, and a kill or an error leaves them there. `<out>.partial.json` says what
    made them, so that no two models' rows are mixed. Rows of an earlier run are there until the first new one is
    written.

    Args:
        top_k: how many answers a row has.
        members: of an ensemble, the names of its members.
        made_by: what decides about the rows: models and options, as JSON values.

    Raises:
        RunError: the file cannot be written, or another process is writing it.
        OptionError: the rows that are to be gone on with were made otherwise.
    """
    names = columns(top_k, members)
    expect_distinct(names, members)
    if options.file is None:
        yield TextRows(_utf8(sys.stdout), options.kind, names, members)
        sys.stdout.flush()
        return
    out = options.file.resolve()  # a link is written through, not replaced
    if options.kind == "parquet":
        with atomic_path(out) as partial, ParquetRows(partial, names, members) as rows:
            yield rows
        return
    with _RowFile(out, options, names, members, dict(made_by or {})) as kept_rows:
        yield kept_rows


def _utf8(stream: TextIO) -> TextIO:
    """The same stream, writing what a file would hold: behind a pipe, Windows has Python write its code page."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    return stream


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
        self._end = 0  # of the rows that are kept, in bytes
        self._is_read = False
        self._file: BinaryIO
        self._rows: TextRows | None = None

    def __enter__(self) -> _RowFile:
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._locked()
        except OSError as error:
            raise RunError(f"cannot write {self._out}: {error.strerror or error}") from error
        # killed before its first row, it may have no record either
        self._resumes = self._resumes and os.fstat(self._file.fileno()).st_size > 0
        if self._resumes:
            self._check_record()
        return self

    def _locked(self) -> BinaryIO:
        """The partial file, opened as it is, which no other process writes to."""
        while True:
            file = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")
            lock(file, f"{self._partial}: another process is writing these rows; wait for it, or stop it")
            # another process may have finished, and renamed this file, after it was opened and before it was locked
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._partial)):
                    return file
            file.close()

    def _check_record(self) -> None:
        try:
            known = json.loads(self._record.read_text(encoding="utf-8"))
            if not isinstance(known, dict):
                raise ValueError("not an object")
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
        """The whole rows before the first that is damaged or cut off; nothing is deleted by reading them."""
        if self._resumes and not self._is_read:
            found = _csv_rows(self._file, self._names) if self._format == "csv" else _json_rows(self._file)
            with suppress(ValueError, KeyError, TypeError):  # a row that was damaged: it and what follows are made anew
                for values, end_of_row in found:
                    if values is not None:
                        yield prediction_of(values, self._members)
                    self._end = end_of_row
        self._is_read = True

    def _start(self) -> None:
        """Make room for the first new row: only now the rows of an earlier run go that are not kept.

        The file is emptied before the record changes: a kill between the two leaves no row that another model made.
        """
        for _ in self.kept():
            pass
        self._file.seek(self._end)
        self._file.truncate()
        if not self._resumes:
            write_json(self._record, self._made_by)
        # file names are bytes to the system; those that are not UTF-8 are written back as they were
        text = open(self._file.fileno(), "w", encoding="utf-8", errors="surrogateescape", newline="", closefd=False)  # noqa: SIM115
        self._text = text
        self._rows = TextRows(text, self._format, self._names, self._members, has_header=self._end > 0)

    def write(self, prediction: Prediction) -> None:
        with self._writing():
            if self._rows is None:
                self._start()
            assert self._rows is not None
            self._rows.write(prediction)

    def flush(self) -> None:
        with self._writing():
            if self._rows:
                self._rows.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write {self._out}: {error.strerror or error}; {self._partial.name} keeps the rows so far: "
                "make room, then add --resume"
            ) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._finish()
            else:
                self._stop()
        finally:
            with suppress(OSError):
                self._file.close()

    def _finish(self) -> None:
        with self._writing():
            if self._rows is None:
                self._start()
            self.flush()
            os.replace(self._partial, self._out)
            self._record.unlink(missing_ok=True)

    def _stop(self) -> None:
        """Keep the rows so far, whatever has happened; a file without any goes."""
        with suppress(RunError):
            self.flush()
        with suppress(OSError):
            if not os.fstat(self._file.fileno()).st_size:
                self._partial.unlink(missing_ok=True)
                self._record.unlink(missing_ok=True)


def _csv_rows(file: BinaryIO, names: Sequence[str]) -> Iterator[tuple[dict[str, str] | None, int]]:
    """The whole rows of a CSV that may end anywhere, each with the offset of its end; None for the header."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line, end in _whole_lines(file):  # noqa: B007  `end` is what is read so far, at each row
            yield line.decode("utf-8", errors="surrogateescape")

    reader = csv.reader(lines(), strict=True)  # strict: a row that ends within quotes is an error
    with suppress(csv.Error):
        for number, cells in enumerate(reader):
            if len(cells) != len(names):
                return
            yield (dict(zip(names, cells, strict=True)) if number else None), end


def _json_rows(file: BinaryIO) -> Iterator[tuple[dict[str, Any] | None, int]]:
    for line, end in _whole_lines(file):
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        yield values, end


def _whole_lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each line that was not cut off, with the offset of its end."""
    file.seek(0)
    end = 0
    for line in file:
        if not line.endswith(b"\n"):
            return
        end += len(line)
        yield line, end
