"""Labels in text: a name a line, numbered or not, with WordNet ids, or a table with a header."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from edgecls.errors import OptionError, some

WORDNET_ID: Final = re.compile(r"n\d{8}")

# `0 cat`, `0: cat`, `0,cat`, `0. cat`, `(0) cat`, `0 -> cat`, `0 - cat`; not `0-1 years`, `0.5 mm` or `001.Albatross`
_NUMBER_FIRST: Final = re.compile(
    r"\(?(?P<number>\d{1,6})(?:\s*(?:[:,;|)=]|[-=]>)[\s>]*|\.\s+|\s+-\s+|\s+)(?P<name>\S.*)"
)
_NUMBER_LAST: Final = re.compile(r"(?P<name>\S.*?)\s*[:,;|\t=]\s*(?P<number>\d{1,6})")
_ID_FIRST: Final = re.compile(r"(?P<id>n\d{8})[\s,:;|]+(?P<name>\S.*)")
_ID_LAST: Final = re.compile(r"(?P<name>\S.*?)[\s,:;|]+(?P<id>n\d{8})")

# What tables call their columns; the first that is there. `label` and `class` are the name or the number.
_NAME_COLUMNS: Final = (
    ("name", "names", "class_name", "classname", "label_name", "display_name", "label", "labels", "class", "category")
)  # fmt: skip
_NUMBER_COLUMNS: Final = (
    ("index", "idx", "id", "class_id", "classid", "class_index", "class_idx", "label_id", "label_index", "category_id",
     "number", "no", "#", "", "target", "label", "class", "category")
)  # fmt: skip
_ID_COLUMNS: Final = ("wnid", "wordnet_id", "synset", "synset_id", "wordnet")
_TABLES: Final = (".csv", ".tsv")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Listed:
    """What a file lists.

    Attributes:
        names: in the order of their indices.
        ids: the WordNet id of each, or none.
        note: what was left out of its lines, for the user to see; None where they are the names.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class _Row:
    """A line: what is left of it to be the name, and the id that was taken out of it."""

    name: str
    id: str = ""


def listed_in_text(text: str, path: Path) -> Listed:
    """The labels of a text.

    Raises:
        OptionError: a table with columns that are not understood, or numbers with a gap.
    """
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")]
    table = _table(lines, path)
    if table:
        return table
    names = _plain(lines[0].split(_separator(lines[0])) if len(lines) == 1 else lines)
    rows = [_Row(name) for name in names]
    numbered = _without_numbers(rows, path)
    with_ids = _with_ids(numbered or rows)
    # ImageNet's own lists have the id before the number
    found = (with_ids if numbered else with_ids and _without_numbers(with_ids, path)) or with_ids or numbered or rows
    if found is rows and path.suffix.lower() in _TABLES and any(_separator(name) in name for name in names):
        raise OptionError(
            f"--labels {path}: a table without a header that says which column is which, first row {lines[0]!r}; "
            "make its first row index,label, or write one label a line"
        )
    kept = tuple(row.name for row in found)
    ids = tuple(row.id for row in found) if found[0].id else ()
    return Listed(kept, ids, None if kept == tuple(lines) else _note(lines, kept))


def _note(lines: Sequence[str], names: Sequence[str]) -> str | None:
    """One example, a whole line beside the name in it."""
    line = next((line for line in lines if names[0] in line), lines[0])
    return f"of the lines of the label file only the names were taken: {line!r} is {names[0]!r}"


def in_order(numbered: Sequence[tuple[int, _T]], source: str) -> list[_T]:
    """What is numbered, in the order of its numbers, which must be 0, 1, 2, ... or 1, 2, 3, ...

    Raises:
        OptionError: they are not; `source` begins the message.
    """
    numbers = [number for number, _ in numbered]
    wrong = sorted(set(range(len(numbers))) ^ set(numbers))
    if wrong and sorted(numbers) != list(range(1, len(numbers) + 1)):
        raise OptionError(
            f"{source}: {len(numbers)} labels, but their indices are not 0 to {len(numbers) - 1}: {wrong[0]} is "
            f"{'missing' if wrong[0] in range(len(numbers)) else 'out of range'}, or two labels share one"
        )
    return [thing for _, thing in sorted(numbered, key=lambda pair: pair[0])]


# --- Lines -----------------------------------------------------------------------------------------------------


def _separator(line: str) -> str:
    """Of the three that tables have, the one that stands there most."""
    return max(",;\t", key=line.count)


def _plain(lines: Sequence[str]) -> list[str]:
    """Lines without what all of them have in common as parts of a list: commas behind, quotes around, a dash before."""
    lines = [line.strip() for line in lines]
    if len(lines) > 1 and all(line.endswith((",", ";")) or not line for line in lines[:-1]):
        lines = [line.rstrip(",;").rstrip() for line in lines]
    if all(line[:2] in ("- ", "* ") for line in lines):
        lines = [line[2:].strip() for line in lines]
    if all(_is_quoted(line) for line in lines):
        lines = [line[1:-1] for line in lines]
    return lines


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]


def _unquoted(text: str) -> str:
    return text[1:-1].replace('""', '"') if _is_quoted(text) else text


def _without_numbers(rows: Sequence[_Row], path: Path) -> list[_Row] | None:
    """The rows in the order of their numbers and without them; None where they are not numbered.

    Names may begin with a number (`7 up`, or `1 euro`, `2 euro`): only 0, 1, 2, ... and 1, 2, 3, ... number them, and
    only where most are names of their own without.

    Raises:
        OptionError: they count up from 0 and leave numbers out: a list from which lines are missing.
    """
    for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
        matches = [pattern.fullmatch(row.name) for row in rows if row.name]
        found = [(int(m["number"]), _unquoted(m["name"])) for m in matches if m]
        if len(found) < max(len(matches), 2) or not _mostly_different(name for _, name in found):
            continue
        numbers = [number for number, _ in found]
        if sorted(numbers) in (list(range(len(found))), list(range(1, len(found) + 1))):
            ids = [row.id for row in rows if row.name]
            return [_Row(name, each) for (_, name), each in sorted(zip(found, ids, strict=True), key=lambda p: p[0][0])]
        if pattern is _NUMBER_FIRST and numbers[0] == 0 and numbers == sorted(set(numbers)):
            missing = min(set(range(numbers[-1])) - set(numbers))
            raise OptionError(
                f"--labels {path}: its lines are numbered from 0 to {numbers[-1]}, but {missing} is missing; expected "
                "one for each class. If the numbers are part of the names, give the names as a JSON list"
            )
    return None


def _mostly_different(names: Iterable[str]) -> bool:
    counts = Counter(names)
    return 2 * sum(count == 1 for count in counts.values()) > sum(counts.values())


def _with_ids(rows: Sequence[_Row]) -> list[_Row] | None:
    """The rows with the WordNet ids taken out of them; None where they have none, or the same one twice."""
    for pattern in (_ID_FIRST, _ID_LAST):
        matches = [pattern.fullmatch(row.name) for row in rows if row.name]
        found = [_Row(_unquoted(match["name"]), match["id"]) for match in matches if match]
        if found and len({row.id for row in found}) == len(matches):
            return found
    return None


# --- Tables ----------------------------------------------------------------------------------------------------


def _table(lines: Sequence[str], path: Path) -> Listed | None:
    """What a table lists, if its first row says which column is which."""
    first, rows = _cells(lines[:1], lines, path)[0], _cells(lines, lines, path)[1:]
    header = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in first]
    names = _column(header, _NAME_COLUMNS)
    numbers = _column(header, [name for name in _NUMBER_COLUMNS if names is None or name != header[names]])
    ids = _column(header, _ID_COLUMNS)
    if header == ["", "0"]:  # as pandas writes a series
        names, numbers = 1, 0
    is_alone = len(first) == 1 and path.suffix.lower() in _TABLES
    if names is None or not (is_alone or numbers is not None or ids is not None):
        return None
    _check_widths(first, rows, path)
    if numbers is not None:
        rows = in_order([(_whole(row[numbers], path), row) for row in rows], f"--labels {path}")
    return Listed(
        tuple(row[names].strip() for row in rows),
        () if ids is None else tuple(row[ids].strip() for row in rows),
        f"its labels are the column {first[names]!r} of the label file",
    )


def _cells(part: Sequence[str], lines: Sequence[str], path: Path) -> list[list[str]]:
    try:
        rows = list(csv.reader(part, delimiter=_separator(lines[0]), skipinitialspace=True))
    except csv.Error as error:
        raise OptionError(f"--labels {path}: not a list of labels ({error}); expected a label a line") from error
    return [row for row in rows if any(row)] or [[""]]


def _check_widths(header: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> None:
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise OptionError(
                f"--labels {path}: its header has {len(header)} columns ({some(header)}) and row {number} below it has "
                f"{len(row)}: {some(row)}; put a name that has a separator in it between quotes"
            )


def _column(header: Sequence[str], names: Iterable[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _whole(text: str, path: Path) -> int:
    if not (text.strip().isascii() and text.strip().isdecimal()):
        raise OptionError(f"--labels {path}: {text!r} in the column of the indices; expected whole numbers from 0")
    return int(text)
