"""Options: frozen dataclasses whose fields say their own help, and which may be made of parts.

One declaration serves the command line (a flag for every field), the file of `--options` (a name for every flag) and
the manifest. Parts group flags that belong together; on the outside there is one flat list, so names are unique.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgecls.errors import OptionError
from edgecls.records import TextFile

_T = TypeVar("_T")
_HELP: Final = "help"
_SHOWN: Final = "shown"
OPTIONS_KEY: Final = "options"  # of a file that says more than options, as recipe.json


def option(default: _T, help: str, *, shown: str = "") -> _T:
    """A field with its help line; `shown` is what stands for a default of None ("the weights' own")."""
    return field(default=default, metadata={_HELP: help, _SHOWN: shown})


@dataclass(frozen=True)
class Flag:
    """One field of a tree of options, as the outside sees it.

    Attributes:
        name: of the field; the flag is the same with hyphens.
        type: the resolved annotation.
        part: name of the part that it belongs to; empty at the top.
        panel: the first line of that part's docstring, which groups flags in `--help`.
    """

    name: str
    type: Any
    default: Any
    help: str
    shown: str
    part: str
    panel: str


def flag_name(name: str) -> str:
    """A field's name as a flag: `--batch-size`."""
    return "--" + name.replace("_", "-")


def flags_of(options: type[Any], part: str = "") -> Iterator[Flag]:
    """The fields of a dataclass, those of its parts among them, in the order of declaration."""
    hints = get_type_hints(options)
    for each in fields(options):
        if is_dataclass(hints[each.name]):
            yield from flags_of(hints[each.name], each.name)
        elif _HELP in each.metadata:
            yield _flag(each, hints[each.name], part, (options.__doc__ or "").splitlines()[0].rstrip("."))


def _flag(each: Field[Any], hint: Any, part: str, panel: str) -> Flag:
    return Flag(each.name, hint, each.default, each.metadata[_HELP], each.metadata[_SHOWN], part, panel)


def flat(options: Any) -> dict[str, Any]:
    """Name and value of every flag, as JSON values."""
    return {
        flag.name: _to_json(getattr(getattr(options, flag.part) if flag.part else options, flag.name))
        for flag in flags_of(type(options))
    }


def from_flat(cls: type[_T], values: Mapping[str, Any], source: str) -> _T:
    """The options that `flat` gave, or that a user wrote in a file; what is left out has its default.

    Args:
        values: JSON values by name of a flag, with hyphens or underscores.
        source: where they came from, for messages.

    Raises:
        OptionError: an unknown name, a value of another kind than the flag's, or one that its part refuses.
    """
    known = {flag.name: flag for flag in flags_of(cls)}
    given = {name.replace("-", "_"): value for name, value in values.items()}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise OptionError(f"{source}: no such option: {', '.join(unknown)}; known are {', '.join(known)}")
    parts: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        parts.setdefault(known[name].part, {})[name] = _from_json(known[name], value, source)
    hints = get_type_hints(cls)
    made = {name: hints[name](**parts.get(name, {})) for name in hints if is_dataclass(hints[name])}
    return cls(**made, **parts.get("", {}))


def read_flat(path: Path) -> dict[str, Any]:
    """The names and values of an options file, or those under `options` in a file that says more.

    Raises:
        OptionError: no such file, or not a JSON object.
    """
    cure = "expected a JSON object of option names, such as a run's recipe.json"
    values = TextFile(path, OptionError, cure).json_object()
    told = values.get(OPTIONS_KEY)
    return told if isinstance(told, dict) else values


def without_none(hint: Any) -> tuple[Any, bool]:
    """An annotation less its None, and whether it had one."""
    if get_origin(hint) in (Union, types.UnionType):
        kept = tuple(each for each in get_args(hint) if each is not type(None))
        return (kept[0] if len(kept) == 1 else Union[kept]), len(kept) < len(get_args(hint))
    return hint, False


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _from_json(flag: Flag, value: Any, source: str) -> Any:
    hint, optional = without_none(flag.type)
    if value is None and optional:
        return None
    if get_origin(hint) is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
        expected = ", ".join(map(str, get_args(hint)))
    elif get_origin(hint) is tuple:
        each = get_args(hint)[0]
        items = value if isinstance(value, list) else [value]  # one value needs no list
        if all(_is(each, item) for item in items):
            return tuple(items)
        expected = f"a list of {each.__name__}"
    elif hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    elif hint is float and _is(int, value) and abs(value) < sys.float_info.max:
        return float(value)
    elif _is(hint, value):
        return value
    else:
        expected = getattr(hint, "__name__", str(hint))
    raise OptionError(f"{source}: {flag.name} is {value!r}; expected {expected}")


def _is(kind: Any, value: Any) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
