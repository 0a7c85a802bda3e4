"""Files that say what a classifier's classes are called, as people and other tools write them."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from edgecls.errors import OptionError
from edgecls.export.adopt.label_lines import Listed, in_order, listed_in_text
from edgecls.export.adopt.label_objects import listed_in_object
from edgecls.names import fault_of, one_form

_LARGEST: Final = 1 << 24  # bytes; the 21,843 classes of ImageNet-21k with all synonyms take 2 million
_NOT_READ: Final = (".yaml", ".yml", ".pbtxt", ".xml", ".toml")
_ASSIGNED: Final = re.compile(r"\s*\w+\s*[:=]\s*(?=[\[{])")  # `names = ["cat", "dog"]`, copied out of a program

_OBJECT: Final = re.compile(r"\s*(?:[\[{]|\(\s*[\"'])")


def read_labels(path: Path) -> Listed:
    """Labels in index order, and their WordNet ids where the file has them.

    Text: a name a line, which may be numbered (`0 cat`, `0: cat`, `cat,0`), have a WordNet id in front, or be a table
    with a header such as `index,label`. JSON or a Python literal: a list, {"0": "cat"}, {"cat": 0},
    {"0": ["n02123045", "tabby"]}, or one of these under a name such as `id2label`.

    Raises:
        OptionError: not readable, not such a file, an index left out, or a label twice.
    """
    if path.suffix.lower() in _NOT_READ:
        raise OptionError(
            f"--labels {path}: a {path.suffix} file, which is not read; write its names into a text file, a label a "
            "line in index order"
        )
    text = _ASSIGNED.sub("", _decoded(path), count=1)
    is_object = path.suffix.lower() == ".json" or _OBJECT.match(text)
    listed = (listed_in_object if is_object else listed_in_text)(text, path)
    names = _told_apart(tuple(map(one_form, listed.names)), listed.ids)
    _check(names, path)
    return Listed(names, listed.ids, listed.note)


def by_index(index_of: Mapping[str, int], source: str) -> tuple[str, ...]:
    """Labels in the order of their indices, which must be 0, 1, 2, ... or 1, 2, 3, ...; `source` is for messages.

    Raises:
        OptionError: they are not.
    """
    return tuple(in_order([(index, label) for label, index in index_of.items()], source))


def _decoded(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 as PowerShell and Excel write it."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device read without end
            raise OptionError(f"--labels {path}: a folder or a device; expected a file with a label a line")
        if path.stat().st_size > _LARGEST:
            raise OptionError(f"--labels {path}: {path.stat().st_size:,} bytes is no file of labels; name another")
        data = path.read_bytes()
        return data.decode(_encoding(data))
    except OSError as error:
        raise OptionError(f"--labels {path}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise OptionError(
            f"--labels {path}: cannot be read as UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8"
        ) from error


def _encoding(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in data[:200]:  # UTF-16 without its mark: half of the bytes of Latin letters are 0
        return "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    return "utf-8-sig"


def _told_apart(names: tuple[str, ...], ids: tuple[str, ...]) -> tuple[str, ...]:
    """Names that two classes share (ImageNet has a crane that flies and one that lifts) get their id behind."""
    counts = Counter(names)
    if not ids:
        return names
    return tuple(f"{name} ({each})" if counts[name] > 1 else name for name, each in zip(names, ids, strict=True))


def _check(names: Sequence[str], path: Path) -> None:
    """Refuse what cannot be the labels of a classifier."""
    if not any(names):
        raise OptionError(f"--labels {path}: no labels in it; expected one label for each class, in index order")
    if len(names) == 1:
        raise OptionError(f"--labels {path}: only one label, {names[0]!r}; expected one for each class, a label a line")
    for index, name in enumerate(names):
        where = f"--labels {path}: the label of index {index}"
        if not name:
            raise OptionError(f"{where} is empty; expected one label for each class, in index order")
        if fault := fault_of(name):
            raise OptionError(f"{where} cannot be used: {fault}; write another name")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        places = [index for index, name in enumerate(names) if name == twice[0]]
        raise OptionError(
            f"--labels {path}: {len(twice)} labels stand there more than once, first {twice[0]!r} for the indices "
            f"{', '.join(map(str, places))}; make them differ"
        )
