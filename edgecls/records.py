"""Text files that people edit, other tools write and disks damage: every JSON and every CSV is read here.

What is found in place of what was expected becomes one of our errors, with the file, the line and the cure.
"""

from __future__ import annotations

import csv
import io
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin

from edgecls.errors import EdgeclsError, some

_SEPARATORS: Final = {";": "semicolons", "\t": "tabs", "|": "bars"}
_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_SHOWN: Final = 60  # characters of a first line in a message


@dataclass(frozen=True)
class TextFile:
    """A file of UTF-8 text, and what is said where it is something else.

    Attributes:
        error: what is raised.
        cure: what to do next, as the end of a sentence: "save it as CSV in UTF-8".
    """

    path: Path
    error: type[EdgeclsError]
    cure: str

    def text(self) -> str:
        """All of it, without a byte order mark.

        Raises:
            error: it cannot be read, or is not UTF-8.
        """
        data = self._bytes()
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            what = f"the byte 0x{data[error.start]:02x} is not UTF-8"
            if data.startswith(_UTF_16):
                what = "it is UTF-16, not UTF-8"
            raise self.error(f"{self._line(data[: error.start].count(10) + 1)}: {what}; {self.cure}") from error

    def raw_text(self) -> str:
        """The same, with the bytes of file names that are not UTF-8 kept as Python keeps them."""
        return self._bytes().decode("utf-8-sig", errors="surrogateescape")

    def json_object(self) -> dict[str, Any]:
        """The JSON object that it holds.

        Raises:
            error: it cannot be read, or is not a JSON object.
        """
        return json_object(self.text(), str(self.path), self.error, self.cure)

    def rows(self, columns: Sequence[str], text: str | None = None) -> Iterator[tuple[int, dict[str, str]]]:
        """Rows of a CSV by the names in its first line, with their line numbers; empty ones are passed over.

        Args:
            columns: those that must be there.
            text: of the file; None reads it.

        Raises:
            error: not such a CSV.
        """
        reader = csv.reader(
            io.StringIO(self.text() if text is None else text, newline=""), skipinitialspace=True, strict=True
        )
        try:
            names = [name.strip() for name in next(reader, [])]
            self._check_header(names, columns)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, self._row(names, cells, reader.line_num)
        except csv.Error as error:
            raise self.error(f"{self._line(reader.line_num)}: not a row of a CSV ({error}); {self.cure}") from error

    def header(self) -> list[str]:
        """The names in the first line of a CSV; none for an empty file.

        Raises:
            error: it cannot be read, or is not UTF-8.
        """
        try:
            first = next(csv.reader(io.StringIO(self.text(), newline=""), skipinitialspace=True), [])
        except csv.Error as error:
            raise self.error(f"{self._line(1)}: not a row of a CSV ({error}); {self.cure}") from error
        return [name.strip() for name in first]

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise self.error(f"{self.path}: cannot be read ({error.strerror or error}); {self.cure}") from error

    def _line(self, number: int) -> str:
        return f"{self.path}, line {number}"

    def _check_header(self, names: Sequence[str], columns: Sequence[str]) -> None:
        shown = ",".join(names)
        shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
        missing = [column for column in columns if column not in names]
        if not missing:
            twice = [column for column in columns if names.count(column) > 1]
            if twice:
                raise self.error(f"{self._line(1)}: two columns named {some(twice)}; {self.cure}")
            return
        what = f"no column {' and no column '.join(missing)}: the first line is {shown!r}"
        for separator, plural in _SEPARATORS.items():
            if set(columns) <= {name.strip() for name in shown.split(separator)}:
                what = f"the columns are separated by {plural}, not by commas"
        raise self.error(f"{self._line(1)}: {what}; {self.cure}")

    def _row(self, names: Sequence[str], cells: Sequence[str], number: int) -> dict[str, str]:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise self.error(
                f"{self._line(number)}: {len(cells)} values where the first line names {len(names)} columns; a value "
                "that has a comma in it goes between quotes"
            )
        return dict(zip(names, [*cells, *[""] * (len(names) - len(cells))], strict=False))


def json_object(text: str, source: str, error: type[EdgeclsError], cure: str) -> dict[str, Any]:
    """The JSON object in a text.

    Args:
        source: where the text came from.
        error, cure: as in `TextFile`.

    Raises:
        error: not JSON, or no object.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as wrong:
        what = "the file is empty" if not text.strip() else f"line {wrong.lineno}, column {wrong.colno}: {wrong.msg}"
        raise error(f"{source} is not JSON ({what}); {cure}") from wrong
    except (ValueError, RecursionError) as wrong:  # a number of thousands of digits, thousands of brackets
        raise error(f"{source} is not JSON that can be read ({wrong}); {cure}") from wrong
    if not isinstance(values, dict):
        raise error(f"{source}: expected a JSON object, got {kind_of(values)}; {cure}")
    return values


def json_text(values: Mapping[str, Any]) -> str:
    """A JSON object for people to read, in Unicode that can be written as UTF-8 whatever is in it.

    Paths may hold bytes that are no UTF-8; Python keeps those as lone surrogates, which become JSON escapes.
    """
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def check_kinds(values: Mapping[str, Any], hints: Mapping[str, Any], refuse: type[EdgeclsError]) -> None:
    """Refuse values out of JSON that are of another kind than the annotation of their name.

    Raises:
        refuse: with the name, what was expected and what was got.
    """
    for name, value in values.items():
        if not fits(hints[name], value):
            raise refuse(f"{name}: expected {_named(hints[name])}, got {_shown(value)}")


def fits(hint: Any, value: Any) -> bool:
    """Whether a value out of JSON is what an annotation says; a list is a tuple, and a whole number a float."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(each, value) for each in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        each = [inner[0]] * len(value) if isinstance(value, list) and inner[-1] is Ellipsis else inner
        return isinstance(value, list) and len(value) == len(each) and all(map(fits, each, value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(fits(inner[1], each) for each in value.values())
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    return value is None if hint in (None, type(None)) else isinstance(value, hint)


def _named(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is tuple:
        of = {str: "text", int: "whole numbers", float: "numbers"}.get(inner[0], str(inner[0]))
        return f"a list of {'' if inner[-1] is Ellipsis else f'{len(inner)} '}{of}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "an object" if inner[1] is Any else f"an object of {_named(inner[1])} by name"
    return {str: "a text", int: "a whole number", float: "a number"}.get(hint, str(hint))


def kind_of(value: Any) -> str:
    """What a value out of JSON is, in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= _SHOWN else f"{kind_of(value)} ({text[: _SHOWN - 1]}…)"
