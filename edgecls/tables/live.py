"""One line at the bottom of a terminal that says what a training does; nothing where there is no terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

if TYPE_CHECKING:  # it loads torch
    from edgecls.train import progress

_BAR_WIDTH: Final = 20  # characters, so that all of it fits into a line of 80
_TITLE_WIDTH: Final = 34


class LiveLine:
    """What is done at the moment; a new title takes the place of the old one, so the line stays one."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, speed="", left="")

    def loading(self, title: str) -> None:
        """Say what takes an unknown time."""
        self._bar.reset(self._task, total=None, description=title, speed="", left="")

    def show(self, told: progress.Progress) -> None:
        """Say how far the training is."""
        speed = "" if told.images_per_second is None else f"{told.images_per_second:,.0f} img/s"
        left = "" if told.seconds_left is None else f"{duration(told.seconds_left)} left"
        title = told.title if len(told.title) <= _TITLE_WIDTH else told.title[: _TITLE_WIDTH - 1] + "…"
        self._bar.update(
            self._task, description=title, completed=told.done, total=told.total, speed=speed, left=left
        )  # fmt: skip


def duration(seconds: float) -> str:
    """`3 min 12 s`, `45 s` or `2 h 5 min`."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def live_line(console: Console) -> Iterator[LiveLine]:
    """A line below what `console` prints, or on standard error where that goes into a file."""
    shown = console if console.is_terminal else Console(stderr=True, markup=False)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(_BAR_WIDTH), TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"), console=shown, transient=True, disable=not shown.is_terminal,
        redirect_stdout=shown is console, redirect_stderr=shown is console,
    )  # fmt: skip
    with bar:
        yield LiveLine(bar)
