"""Everything that edgecls raises on purpose:

* EdgeclsError
  x ImageError       one file is not a usable image; `reason` says why
  x DatasetError     labelled images are not laid out as understood
  x RunError         a run folder, manifest or model file is missing, damaged or of another kind
  x OptionError      options contradict one another or name something unknown
  x TrainingError    training cannot start or go on
    + Interrupted    the user stopped it before there was a result
    + Collapsed      it has learnt nothing for several epochs
    + Diverged       its loss is no longer a number
  x ExportError      a model file could not be written
    + ParityError    it was written, but answers differently from its checkpoint
  x MissingExtra     an optional package is not installed; the message has the pip command

A message says what was got, what was expected and what to do next. The command line catches the root
alone, prints it without a traceback and exits 1 (130 for `Interrupted`); anything else that escapes is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are: for messages about long lists."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(n: int, thing: str) -> str:
    """`1 epoch`, `2 epochs`: a number of things whose plural ends in s."""
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


class EdgeclsError(Exception):
    """The root; also a sign that the message is written for the user."""


class ImageError(EdgeclsError):
    """One file is not a usable image. `reason` is one line without the path, for tables and rows."""

    def __init__(self, reason: str, path: str | None = None) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.reason = reason


class DatasetError(EdgeclsError):
    """Labelled images are not laid out in a way that is understood, or a split cannot be made of them."""


class RunError(EdgeclsError):
    """A run folder, a manifest or a model file is missing, damaged, or not one of edgecls."""


class OptionError(EdgeclsError):
    """Options contradict one another, are out of range, or name something that does not exist."""


class TrainingError(EdgeclsError):
    """Training cannot start or cannot go on."""


class Interrupted(TrainingError):
    """The user stopped a training before it had a result; the message says how to go on. Exit code 130."""


class Collapsed(TrainingError):
    """A training gives one answer to everything and no longer learns."""


class Diverged(TrainingError):
    """The loss of a training is no longer finite."""


class ExportError(EdgeclsError):
    """A model file could not be written; older files stay as they were."""


class ParityError(ExportError):
    """An exported model does not answer as its checkpoint does."""


class MissingExtra(EdgeclsError):
    """An optional package is needed that is not installed.

    Args:
        needed_for: what the user asked for, in their words.
        extra: the name of the extra that brings the package.
    """

    def __init__(self, needed_for: str, extra: str) -> None:
        super().__init__(f'{needed_for} needs a package that is not installed: pip install "edgecls[{extra}]"')
        self.extra = extra


def first_line(error: BaseException) -> str:
    """What an exception says in its first line, or what it is called where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
