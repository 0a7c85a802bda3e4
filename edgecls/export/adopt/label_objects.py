"""Labels in JSON, or in Python as somebody printed it: lists and dictionaries of several tools."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgecls.errors import OptionError
from edgecls.export.adopt.label_lines import WORDNET_ID, Listed, in_order

# Where Hugging Face (transformers, timm), Keras, torchvision, Teachable Machine and edgecls keep them in larger files
_KEYS: Final = (
    ("id2label", "label2id", "label_names", "labels", "names", "class_names", "classes", "categories", "class_to_idx",
     "idx_to_class", "class_indices")
)  # fmt: skip
_NAMES: Final = ("name", "label", "class_name")
_NUMBERS: Final = ("id", "index")

_EXPECTED: Final = (
    'expected a list of names, {"0": "cat", ...}, {"cat": 0, ...} or {"0": ["n02123045", "tabby"], ...}, or one of '
    "these under a key such as id2label"
)


def listed_in_object(text: str, path: Path) -> Listed:
    """The labels of a JSON or Python object.

    Raises:
        OptionError: neither, or one that is not understood; indices that are not 0, 1, 2, ...; a key twice.
    """
    source = f"--labels {path}"
    values = _read(text, source)
    inner, key = _inner(values)
    listed = _listed(inner, source)
    if listed is None:
        raise OptionError(f"{source}: {_EXPECTED}")
    if key == "id2label":
        _check_reverse(values.get("label2id"), listed.names, source)
    if key == "labels" and not listed.ids and _are_names(values.get("label_ids")):  # our own manifest
        listed = Listed(listed.names, tuple(values["label_ids"]))
    return listed if key is None else Listed(listed.names, listed.ids, f"its labels are {key!r} of the label file")


def _read(text: str, source: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return _unique([key for key, _ in pairs], [value for _, value in pairs], source)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            values = ast.literal_eval(tree)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            raise OptionError(f"{source}: not JSON: {error}") from error
    if isinstance(tree, ast.Dict):
        return _unique([ast.literal_eval(key) for key in tree.keys if key], list(values.values()), source)
    return list(values) if isinstance(values, tuple) else values


def _unique(keys: Sequence[Any], values: Sequence[Any], source: str) -> dict[str, Any]:
    """A dictionary with keys of text; of two equal keys readers keep the last in silence."""
    twice = [key for index, key in enumerate(keys) if key in keys[:index]] if len(set(keys)) < len(keys) else []
    if twice:
        raise OptionError(f"{source}: {twice[0]!r} stands there twice; expected each index and each name once")
    return {str(key): value for key, value in zip(keys, values, strict=True)}


def _inner(values: Any) -> tuple[Any, str | None]:
    """The part that lists the labels, and the key it is under."""
    if isinstance(values, dict):
        for key in _KEYS:
            if isinstance(values.get(key), (list, dict)):
                return values[key], key
    return values, None


def _listed(values: Any, source: str) -> Listed | None:
    if isinstance(values, list):
        return _of_list(values, source)
    if not isinstance(values, dict):
        return None
    if values and all(type(value) is int for value in values.values()):
        return Listed(tuple(in_order([(index, name) for name, index in values.items()], source)))
    if all(_is_index(key) for key in values):
        return _of_list(in_order([(int(key), value) for key, value in values.items()], source), source)
    if all(WORDNET_ID.fullmatch(key) for key in values) and list(values) == sorted(values):
        return _of_list([[key, value] for key, value in values.items()], source)
    return None


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdecimal()


def _are_names(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _of_list(values: Sequence[Any], source: str) -> Listed | None:
    """Of names, of pairs of an id or index and a name, or of objects with such fields."""
    if all(isinstance(value, str) for value in values):
        return Listed(tuple(values))
    pairs = [_pair(value) for value in values]
    numbered = [(key, name) for key, name in filter(None, pairs) if type(key) is int]
    with_ids = {key: name for key, name in filter(None, pairs) if isinstance(key, str) and WORDNET_ID.fullmatch(key)}
    if len(numbered) == len(values):
        return Listed(tuple(in_order(numbered, source)))
    if len(with_ids) == len(values):
        return Listed(tuple(with_ids.values()), tuple(with_ids))
    return None


def _pair(value: Any) -> tuple[int | str, str] | None:
    if isinstance(value, dict):
        key, name = (next((value[field] for field in fields if field in value), None) for fields in (_NUMBERS, _NAMES))
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        key, name = value
    else:
        return None
    return (key, name) if isinstance(key, (int, str)) and isinstance(name, str) else None


def _check_reverse(index_of: Any, names: Sequence[str], source: str) -> None:
    """Hugging Face writes both directions; where they disagree, nobody knows which is right."""
    if not isinstance(index_of, Mapping):
        return
    for name, index in index_of.items():
        if not (type(index) is int and 0 <= index < len(names) and names[index] == name):
            raise OptionError(
                f"{source}: its label2id says {index} for {name!r}, and its id2label does not; correct the one that "
                "is wrong, or give a text file with a label a line"
            )
