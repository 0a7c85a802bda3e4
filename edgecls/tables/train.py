"""What `edgecls train` prints: a line an epoch, the result, the folds."""

from __future__ import annotations

from functools import partial

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from edgecls.evaluate.page.run_page import write_run_page
from edgecls.evaluate.training_plots import draw_training
from edgecls.runs import Run
from edgecls.tables.common import facts_table, percent, with_interval
from edgecls.tables.live import LiveLine
from edgecls.train.kinds.folds import FoldsResult
from edgecls.train.kinds.result import TrainResult
from edgecls.train.machine import rank
from edgecls.train.progress import Epoch, Listener


def listener_on(console: Console, live: LiveLine) -> Listener:
    """What is told of a training: lines on a console, the moment in the live line; of one process, if several train."""
    say = partial(console.print, soft_wrap=not console.is_terminal)  # a line stays one in a file

    def draw(run: Run) -> None:
        live.loading("drawing the figures and the page")
        draw_training(run)
        write_run_page(run)

    return Listener() if rank() else Listener(say, lambda epoch: say(epoch_line(epoch)), live.show, draw)


def epoch_line(epoch: Epoch) -> str:
    """What an epoch gave, in a line of 80 characters at most; recall is the mean over the classes."""
    train, validation, recall = (
        f"{100 * share:.1f}".replace("100.0", "100")  # so that the line fits
        for share in (epoch.train_accuracy, epoch.val_accuracy, epoch.val_recall)
    )
    seconds = f"{epoch.seconds:.1f}" if epoch.seconds < 10 else f"{epoch.seconds:.0f}"
    return (
        f"epoch {epoch.epoch:2d} {epoch.phase:5s} loss {epoch.train_loss:.3f}, training {train}, "
        f"validation {validation}, recall {recall} %, {seconds} s"
    )


def trained(result: TrainResult | FoldsResult) -> Table:
    """The facts of one training, or a line for each fold."""
    return _training(result) if isinstance(result, TrainResult) else _folds(result)


def _training(result: TrainResult) -> Table:
    table = facts_table("Training")
    table.add_row("validation accuracy", f"{with_interval(result.validation_accuracy, result.n_validation)}")
    if result.test_accuracy is not None:
        table.add_row("test accuracy", f"{with_interval(result.test_accuracy, result.n_test)}")
    precision, recall, f1 = (result.figures[f"validation_{name}"] for name in ("precision", "recall", "f1"))
    table.add_row(
        "precision, recall, F1", f"{percent(precision)}, {percent(recall)}, {percent(f1)} (means over classes)"
    )
    if "extended" in result.figures:
        told = result.figures["extended"]
        table.add_row("new classes", f"{percent(told['new_after'])} of {told['n_new']:,}")
        before, after = percent(told["old_before"]), percent(told["old_after"])
        table.add_row("old classes", f"{after} of {told['n_old']:,}, {before} before; {told['forgotten']:,} forgotten")
    table.add_row("images", f"{result.n_train:,} train, {result.n_validation:,} validation, {result.n_test:,} test")
    if result.unreadable:
        table.add_row("left out", f"{len(result.unreadable):,} unreadable images, listed in split.csv")
    table.add_row("parameters", f"{result.n_parameters / 1e6:.2f} M")
    if result.n_epochs:
        table.add_row("best epoch", f"{result.best_epoch} of {result.n_epochs}")
    table.add_row("time", f"{result.seconds:.1f} s")
    table.add_row("run", str(result.run))
    return table


def _folds(result: FoldsResult) -> Table:
    """One line a fold; the mean and its standard deviation over the folds below them."""
    title = f"Cross-validation: {len(result.folds)} folds, stratified"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_footer=True)
    has_test = result.test_accuracy is not None
    table.add_column("fold", "mean ± sd", no_wrap=True, style="dim")
    for name, values in _fold_columns(result):
        spread = f"{100 * np.mean(values):.2f} ± {100 * np.std(values, ddof=1):.2f}"
        table.add_column(f"{name} %", spread, justify="right", no_wrap=True)
    if has_test:
        table.add_column("test", f"ensemble {percent(result.test_accuracy or 0)}", justify="right")
    has_epochs = any(fold.n_epochs for fold in result.folds)
    if has_epochs:
        table.add_column("best epoch", justify="right")
    table.add_column("time", f"{result.seconds:.1f} s", justify="right")
    for number, fold in enumerate(result.folds):
        figures = [f"{100 * values[number]:.2f}" for _, values in _fold_columns(result)]
        tested = [percent(fold.test_accuracy or 0)] if has_test else []
        epochs = [f"{fold.best_epoch} of {fold.n_epochs}"] if has_epochs else []
        table.add_row(str(number + 1), *figures, *tested, *epochs, f"{fold.seconds:.1f} s")
    return table


def _fold_columns(result: FoldsResult) -> list[tuple[str, list[float]]]:
    names = ("accuracy", "precision", "recall")
    return [(name, [fold.figures[f"validation_{name}"] for fold in result.folds]) for name in names]
