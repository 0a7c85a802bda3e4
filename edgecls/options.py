"""Options: frozen dataclasses whose fields say their own help, and which may be made of parts.

One declaration serves the command line (a flag for every field), the file of `--options` (a name for every flag) and
the manifest. Parts group flags that belong together; on the outside there is one flat list, so names are unique.
"""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from edgecls.errors import OptionError
from edgecls.records import TextFile

_T = TypeVar("_T")
_FLAG: Final = "flag"  # of the metadata of a field that is one
OPTIONS_KEY: Final = "options"  # of a file that says more than options, as recipe.json


@dataclass(frozen=True)
class Rule:
    """Which values an option takes: whether one does, and how that is told. A value of None is always taken."""

    holds: Callable[[Any], bool]
    expected: str


def at_least(least: float, note: str = "") -> Rule:
    """Numbers from `least` on."""
    return Rule(lambda value: value >= least, f"{least:,} or more{note}")


def below(limit: float) -> Rule:
    """Numbers from 0 on that are less than a limit."""
    return Rule(lambda value: 0 <= value < limit, f"0 or more and below {limit}")


def between(least: float, most: float, of: str = "") -> Rule:
    """Numbers from `least` to `most`, both of them included."""
    return Rule(lambda value: least <= value <= most, f"{least} to {most}{of}")


def above(limit: float, below: float = math.inf, most: float = math.inf) -> Rule:
    """Numbers greater than a limit, and less than another one or at most so much."""
    upper = f" and below {below:,}" if below < math.inf else f" and at most {most:,}" if most < math.inf else ""
    return Rule(lambda value: limit < value < below and value <= most, f"a number above {limit:,}{upper}")


@dataclass(frozen=True)
class _Told:
    """What a field says of itself, as `option` takes it."""

    help: str
    shown: str = ""
    flag: str = ""
    repeat: bool = False
    rule: Rule | None = None


def option(
    default: _T, help: str, *, shown: str = "", flag: str = "", repeat: bool = False, rule: Rule | None = None
) -> _T:
    """A field with its help.

    Args:
        shown: what stands for a default of None ("the weights' own").
        flag: its name on the outside, where that is not the field's.
        repeat: whether several values are given by repeating the flag, and not with commas.
        rule: that `Options` holds values to.
    """
    return field(default=default, metadata={_FLAG: _Told(help, shown, flag, repeat, rule)})


def required(help: str, *, flag: str = "", repeat: bool = False) -> Any:
    """A field as `option` makes it, that has no default."""
    return field(metadata={_FLAG: _Told(help, "", flag, repeat)})


_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a Path has made one slash of two; drives have one letter


class Options:
    """Base of the dataclasses whose fields are options: none is made with a value that its rule or type refuses."""

    def __post_init__(self) -> None:
        """Check every value against the choices of its type and against its rule.

        Raises:
            OptionError: the first value that is none of the choices of its type, or that its rule refuses.
        """
        hints = get_type_hints(type(self))
        for each in fields(self):  # type: ignore[arg-type]
            told, value = each.metadata.get(_FLAG), getattr(self, each.name)
            if not told or value is None:
                continue
            if isinstance(value, Path) and _ADDRESS.match(str(value)):
                address = str(value).replace(":/", "://", 1)
                raise OptionError(f"{flag_name(_name(each))} {address}: an address; expected a path of this machine")
            if rule := _choices(hints[each.name]) or told.rule:
                shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
                expect(rule.holds(value), _name(each), shown, rule.expected)


def _choices(annotation: Any) -> Rule | None:
    hint, _ = without_none(annotation)
    choices = get_args(hint)
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}") if get_origin(hint) is Literal else None


def expect(holds: bool, flag: str, value: object, expected: str) -> None:
    """Refuse the value of a flag unless a condition holds.

    Raises:
        OptionError: it does not hold.
    """
    if not holds:
        shown = '""' if value == "" else value
        raise OptionError(f"{flag_name(flag)} {shown}: expected {expected}")


@dataclass(frozen=True)
class Flag:
    """One field of a tree of options, as the outside sees it.

    Attributes:
        name: with underscores; the flag is the same with hyphens.
        type: the resolved annotation of the field.
        default: `dataclasses.MISSING` where there is none.
        part: name of the part that it belongs to; empty at the top.
        panel: the first line of that part's docstring, which groups flags in `--help`.
    """

    name: str
    type: Any
    default: Any
    help: str
    shown: str
    repeat: bool
    part: str
    panel: str


def flag_name(name: str) -> str:
    """A field's name as a flag: `--batch-size`."""
    return "--" + name.replace("_", "-")


def flags_of(options: type[Any], part: str = "") -> Iterator[Flag]:
    """The fields of a dataclass, those of its parts among them, in the order of declaration."""
    hints = get_type_hints(options)
    panel = (options.__doc__ or "").splitlines()[0].rstrip(".")
    for each in fields(options):
        if told := each.metadata.get(_FLAG):
            yield Flag(
                _name(each), hints[each.name], each.default, told.help, told.shown, told.repeat, part, panel
            )  # fmt: skip
        elif is_dataclass(hints[each.name]):
            yield from flags_of(hints[each.name], each.name)


def _name(each: Field[Any]) -> str:
    return cast(_Told, each.metadata[_FLAG]).flag or each.name


def flat(options: Any) -> dict[str, Any]:
    """Name and value of every flag, as JSON values."""
    found: dict[str, Any] = {}
    for each in fields(options):
        value = getattr(options, each.name)
        if _FLAG in each.metadata:
            found[_name(each)] = _to_json(value)
        elif is_dataclass(value):
            found |= flat(value)
    return found


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
    missing = [name for name, flag in known.items() if flag.default is MISSING and name not in given]
    if missing:
        raise OptionError(f"{source}: no {', '.join(missing)} in it; add it")
    return _made(cls, {name: _from_json(known[name], value, source) for name, value in given.items()})


def _made(cls: type[_T], values: Mapping[str, Any]) -> _T:
    hints = get_type_hints(cls)
    own: dict[str, Any] = {}
    for each in fields(cls):  # type: ignore[arg-type]
        if _FLAG in each.metadata:
            if _name(each) in values:
                own[each.name] = values[_name(each)]
        elif is_dataclass(hints[each.name]):
            own[each.name] = _made(hints[each.name], values)
    return cls(**own)


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
    if isinstance(value, tuple):
        return [_to_json(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _from_json(flag: Flag, value: Any, source: str) -> Any:
    try:
        return _converted(flag.type, value)
    except _Unfit as unfit:
        raise OptionError(f"{source}: {flag.name} is {value!r}; expected {unfit}") from None


class _Unfit(Exception):
    """What was expected instead."""


def _converted(annotation: Any, value: Any) -> Any:
    hint, optional = without_none(annotation)
    if value is None and optional:
        return None
    if get_origin(hint) is Literal:
        if isinstance(value, str) and value in get_args(hint):
            return value
        raise _Unfit(", ".join(map(str, get_args(hint))))
    if get_origin(hint) is tuple:
        each, *others = get_args(hint)
        items = value if isinstance(value, list) else [value]  # one value needs no list
        if others in ([], [...]) or len(items) == 1 + len(others):
            with suppress(_Unfit):
                return tuple(_converted(each, item) for item in items)
        many = f"{1 + len(others)} " if others not in ([], [...]) else ""
        raise _Unfit(f"a list of {many}{getattr(each, '__name__', 'names')}")
    if hasattr(hint, "parse") and isinstance(value, str):
        return hint.parse(value)
    if hint is Path and isinstance(value, str) and "\0" not in value:
        return Path(value)
    if hint is float and _is(int, value) and abs(value) < sys.float_info.max:
        return float(value)
    if _is(hint, value):
        return value
    raise _Unfit(getattr(hint, "__name__", str(hint)))


def _is(kind: Any, value: Any) -> bool:
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
