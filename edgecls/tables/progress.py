"""A progress bar for work whose length is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from edgecls.export.progress import Progress as ExportProgress


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Progress]:
    """A bar with one task, on a terminal; nothing elsewhere."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        bar.add_task(title, total=None)
        yield bar


@contextmanager
def export_progress(console: Console) -> Iterator[ExportProgress]:
    """The lines of an export above a bar for each of its passes over images."""
    with progress_bar(console, "export") as bar:
        (task,) = bar.task_ids
        yield ExportProgress(
            console.print,
            lambda title, n: bar.reset(task, total=n, description=title),
            lambda n: bar.advance(task, n),
        )
