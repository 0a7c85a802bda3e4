"""A progress bar for work whose length is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from edgecls.progress import Progress


@contextmanager
def progress_on(console: Console) -> Iterator[Progress]:
    """The lines of a command and, on a terminal, a bar below them for each of its passes over images."""
    bar = Bar(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None)
        yield Progress(
            console.print,
            lambda title, n: bar.reset(task, total=n, description=title),
            lambda n: bar.advance(task, n),
        )
