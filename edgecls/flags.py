"""A dataclass of options as the flags of a command: one flag for every field, and a file that holds them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Optional, TypeVar, get_args, get_origin

import typer

from edgecls.errors import OptionError
from edgecls.options import Flag, flag_name, flags_of, from_flat, read_flat, without_none

_Options = TypeVar("_Options")
_FILE: Final = "options_file"
_GIVEN: Final = "given"
_SHORT: Final = {"out": ("-o",)}  # as compilers have it
_IN_WORDS: Final[dict[type, str]] = {int: "whole numbers", float: "numbers"}


def flags(
    options: type[_Options], *, arguments: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command `f(options, **its own flags)`: it is called with the options made of the flags.

    Flags have the fields' defaults and help lines, in panels by part. `--options FILE` gives values (as a run's
    recipe.json has them); flags that are typed besides win. A command with a parameter `given` gets there the names
    of the flags that were typed.

    Args:
        arguments: names of fields that are arguments and not flags.
    """
    known = {flag.name: flag for flag in flags_of(options)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(ctx: typer.Context, **values: Any) -> None:
            sources = {name: ctx.get_parameter_source(name) for name in values}
            given = {name for name, source in sources.items() if source and not source.name.startswith("DEFAULT")}
            typed = {n: _parsed(known[n], values[n]) for n in given & set(known)}
            file = values.pop(_FILE)
            read = read_flat(file) if file else {}
            merged = {**{name.replace("-", "_"): value for name, value in read.items()}, **typed}
            own = {n: value for n, value in values.items() if n not in known}
            if wants_given:
                own[_GIVEN] = frozenset(given)
            command(from_flat(options, merged, str(file or "options")), **own)

        own = dict(list(inspect.signature(command, eval_str=True).parameters.items())[1:])
        wants_given = own.pop(_GIVEN, None) is not None
        first = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        made = [_parameter(flag, flag.name in arguments) for flag in known.values()]
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (first, *made, _file_parameter(), *own.values())
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _file_parameter() -> inspect.Parameter:
    told = typer.Option(
        "--options",
        help="A JSON file of options by the names of the flags. Flags win over it.",
    )
    return inspect.Parameter(
        _FILE, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Optional[Path], told]
    )


def _parameter(flag: Flag, is_argument: bool) -> inspect.Parameter:
    """What typer makes the flag of; what it has no kind for is text, which `_parsed` reads."""
    kind, optional = without_none(flag.type)
    default, metavar = flag.default, None
    if get_origin(kind) is tuple and flag.repeat:
        kind = list[_choice(flag.name, get_args(kind)[0])]  # type: ignore[misc]
        default = default if default is MISSING else list(default)
    elif _has_commas(kind) or hasattr(kind, "parse"):
        default = _text(default)
        kind, optional, metavar = str, True, "A,B,..."
    elif get_origin(kind) is not tuple:  # of a fixed length it is as many values
        kind = _choice(flag.name, kind)
    shown: dict[str, Any] = {"help": flag.help, "show_default": flag.shown or True}
    told: Any
    if is_argument:
        told = typer.Argument(metavar=flag.name.upper() if flag.repeat else None, **shown)
    else:
        panel = flag.panel if flag.part else None
        names = [flag_name(flag.name), *_SHORT.get(flag.name, ())]
        told = typer.Option(*names, metavar=metavar, rich_help_panel=panel, **shown)
    annotation = Annotated[Optional[kind] if optional else kind, told]  # type: ignore[valid-type]
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _choice(name: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return Enum(name, {str(choice): str(choice) for choice in get_args(kind)}, type=str)
    return kind if isinstance(kind, type) else str  # `str | Path` is text


def _has_commas(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is ...


def _text(default: Any) -> str | None:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or None
    return None if default is None else str(default)


def _parsed(flag: Flag, value: Any) -> Any:
    """What the command line gave, as an options file would say it."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    kind, _ = without_none(flag.type)
    if not _has_commas(kind) or value is None:
        return _plain(value)
    each = get_args(kind)[0]
    try:
        return [each(word.strip()) for word in value.split(",") if word.strip()]
    except ValueError as error:
        name = flag_name(flag.name)
        raise OptionError(f"{name} {value}: expected {_IN_WORDS[each]} with commas between them") from error


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value
