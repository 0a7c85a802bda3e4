"""What a shell hands to a command, made fit to print to and read from: standard streams, width, working folder."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final

from edgecls.errors import OptionError, RunError

_NARROWEST: Final = 20  # columns; a terminal that says less does not know, and tables in none are nothing at all


def make_fit() -> None:
    """Open closed streams on nothing, and forget a width that is none.

    Python has None for a closed stream, and its number would go to the next file that is opened: what a library prints
    would end up in a model file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may have what the terminal has not
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) < _NARROWEST:
        del os.environ["COLUMNS"]


def expect_open(stream: Any, name: str, what: str) -> None:
    """Refuse to lose what would go through a closed stream.

    Args:
        stream: `sys.stdin` or `sys.stdout`.
        name: of the stream, for messages.
        what: needs it.

    Raises:
        OptionError: it was closed when the process began.
    """
    if getattr(stream, "name", None) == os.devnull:
        raise OptionError(f"{name} is closed, and {what}; open it, or send it to a file or a pipe")


def expect_working_folder() -> None:
    """Refuse to work in a folder that was deleted: every relative path would fail, each in its own way.

    Raises:
        RunError: with what to do.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise RunError(
            f"the working folder is gone ({error.strerror}): it was deleted, or its disk went away; change to another "
            "one with cd, and repeat the command"
        ) from error
