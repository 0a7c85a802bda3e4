"""Files that say what a classifier's classes are called."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgecls.errors import OptionError


def read_labels(path: Path) -> tuple[str, ...]:
    """Labels in index order from text (one a line) or JSON (a list, {"0": "cat"} or {"cat": 0}).

    Raises:
        OptionError: not readable, not such a file, an index left out, or a label twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--labels {path}: cannot be read: {error}") from error
    is_json = path.suffix == ".json" or text.lstrip()[:1] in ("[", "{")
    labels = _labels_from_json(text, path) if is_json else tuple(line.strip() for line in text.rstrip().splitlines())
    empty = [index for index, label in enumerate(labels) if not label]
    if empty or not labels:
        where = f"the label of index {empty[0]} is empty" if empty else "no labels in it"
        raise OptionError(f"--labels {path}: {where}; expected one label for each class, in index order")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        places = [index for index, label in enumerate(labels) if label == twice[0]]
        raise OptionError(
            f"--labels {path}: {len(twice)} labels stand there more than once, first {twice[0]!r} for the indices "
            f"{', '.join(map(str, places))}; make them differ"
        )
    return labels


def _labels_from_json(text: str, path: Path) -> tuple[str, ...]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise OptionError(f"--labels {path}: not JSON: {error}") from error
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        return tuple(value.strip() for value in values)
    if isinstance(values, dict) and all(isinstance(value, str) and key.isdecimal() for key, value in values.items()):
        _check_indices([int(key) for key in values], f"--labels {path}")
        return tuple(values[key].strip() for key in sorted(values, key=int))
    if isinstance(values, dict) and all(type(value) is int for value in values.values()):
        return by_index(values, f"--labels {path}")
    raise OptionError(f'--labels {path}: expected a list of names, {{"0": "cat", ...}} or {{"cat": 0, ...}}')


def by_index(index_of: Mapping[str, int], source: str) -> tuple[str, ...]:
    """Labels in the order of their indices, which must be 0, 1, 2, ...; `source` is for messages.

    Raises:
        OptionError: they are not.
    """
    _check_indices(list(index_of.values()), source)
    return tuple(sorted(index_of, key=lambda label: index_of[label]))


def _check_indices(indices: list[int], source: str) -> None:
    wrong = sorted(set(range(len(indices))) ^ set(indices))
    if wrong:
        raise OptionError(
            f"{source}: {len(indices)} labels, but their indices are not 0 to {len(indices) - 1}: {wrong[0]} is "
            f"{'missing' if wrong[0] < len(indices) else 'too high'}, or two labels share one"
        )
