"""A dataclass of options as the flags of a command: one flag for every field, and a file that holds them all."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Optional, TypeVar, get_args, get_origin

import typer

from edgecls.errors import OptionError
from edgecls.options import Flag, flags_of, from_flat, read_flat, without_none

_Options = TypeVar("_Options")
_FILE: Final = "options_file"


def flags(
    options: type[_Options], *, arguments: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command `f(options, given, **its own flags)`: it is called with the options made of the flags.

    Flags have the fields' defaults and help lines, in panels by part. `--options FILE` gives values (as a run's
    recipe.json has them); flags that are typed besides win. `given` are the names of the flags that were typed.

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
            command(from_flat(options, merged, str(file or "options")), frozenset(given), **own)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[2:]
        first = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        made = [_parameter(flag, flag.name in arguments) for flag in known.values()]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (first, *made, _file_parameter(), *own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _file_parameter() -> inspect.Parameter:
    told = typer.Option("--options", help="A JSON file of options, such as a run's recipe.json; flags win.")
    return inspect.Parameter(
        _FILE, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Optional[Path], told]
    )


def _parameter(flag: Flag, is_argument: bool) -> inspect.Parameter:
    kind, optional = without_none(flag.type)
    default, shown = flag.default, flag.shown or True
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        kind = Enum(flag.name, {str(choice): str(choice) for choice in choices}, type=str)  # type: ignore[misc, no-redef]
        default = None if default is None else kind(default)
    elif get_origin(kind) is tuple:
        kind, optional, default = str, True, ",".join(map(str, default)) if default else None
    told: Any
    if is_argument:
        told = typer.Argument(help=flag.help, show_default=shown)
    else:
        panel = flag.panel if flag.part else None
        metavar = "A,B" if get_origin(without_none(flag.type)[0]) is tuple else None
        name = "--" + flag.name.replace("_", "-")
        told = typer.Option(name, help=flag.help, show_default=shown, rich_help_panel=panel, metavar=metavar)
    annotation = Annotated[Optional[kind] if optional else kind, told]  # type: ignore[valid-type]
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parsed(flag: Flag, value: Any) -> Any:
    """What the command line gave, as an options file would say it."""
    kind, _ = without_none(flag.type)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if get_origin(kind) is not tuple or value is None:
        return value
    each = get_args(kind)[0]
    try:
        return [each(word.strip()) for word in value.split(",") if word.strip()]
    except ValueError as error:
        name = flag.name.replace("_", "-")
        raise OptionError(
            f"--{name} {value}: expected {each.__name__} values with commas between, no spaces"
        ) from error
