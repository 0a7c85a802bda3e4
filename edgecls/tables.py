"""What people see in the terminal: results as rich tables, one function a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from edgecls.metrics import wilson_interval

if TYPE_CHECKING:  # the results' modules load torch or ONNX Runtime
    from edgecls.export.run import ExportResult
    from edgecls.runtime.predict import PredictReport
    from edgecls.train.loop import Epoch
    from edgecls.train.run import TrainResult

_PRECISION_NAMES: Final = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8 for TensorRT",
    "int8-cpu": "INT8 for CPUs",
}


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def with_interval(share: float, n: int) -> str:
    """A share with its 95 % interval, in per cent."""
    low, high = wilson_interval(share, n)
    return f"{percent(share)} ({100 * low:.1f} to {100 * high:.1f})"


def epoch_line(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.epoch:3d}  {epoch.phase:4s}  loss {epoch.train_loss:.3f}"
        f"  training {100 * epoch.train_accuracy:6.2f} %  validation {100 * epoch.val_accuracy:6.2f} %"
        f"  {epoch.seconds:.1f} s"
    )


def training(result: TrainResult) -> Table:
    table = _facts("Training")
    table.add_row("validation accuracy", f"{with_interval(result.validation_accuracy, result.n_validation)}")
    if result.test_accuracy is not None:
        table.add_row("test accuracy", f"{with_interval(result.test_accuracy, result.n_test)}")
    table.add_row("images", f"{result.n_train:,} train, {result.n_validation:,} validation, {result.n_test:,} test")
    if result.unreadable:
        table.add_row("left out", f"{len(result.unreadable):,} unreadable images, listed in split.csv")
    table.add_row("parameters", f"{result.n_parameters / 1e6:.2f} M")
    table.add_row("best epoch", f"{result.best_epoch} of {result.n_epochs}")
    table.add_row("time", f"{result.seconds:.1f} s")
    table.add_row("run", str(result.run))
    return table


def exported(result: ExportResult) -> Table:
    n_images = next(iter(result.precisions.values())).n_images
    table = Table(title=f"Export: {n_images:,} validation images", title_justify="left", caption_justify="left")
    table.add_column("file")
    for name in ("top-1", "as checkpoint", "img/s", "size"):
        table.add_column(name, justify="right")
    for precision, measured in result.precisions.items():
        slow = precision == "int8"  # not made for CPUs: its speed here says nothing about the device
        table.add_row(
            _PRECISION_NAMES[precision],
            percent(measured.accuracy),
            percent(measured.agreement),
            "on the device" if slow else f"{measured.images_per_second:,.0f}",
            f"{measured.bytes / 1e6:.2f} MB",
        )
    first = next(iter(result.precisions.values()))
    table.caption = (
        f"{result.verdict}: {result.reason}\n(img/s: {first.backend}, batches of {first.batch_size}, inference alone)"
    )
    return table


def predicted(report: PredictReport) -> tuple[Table, Table]:
    """Facts, and the time of every stage."""
    facts = _facts("Prediction")
    errors = f", {report.errors:,} could not be read (status = error)" if report.errors else ""
    facts.add_row("images", f"{report.images:,}{errors}")
    if report.skipped:
        facts.add_row("skipped", f"{report.skipped:,} files that are not named like an image")
    if report.accuracy is not None:
        facts.add_row(
            "accuracy", f"{with_interval(report.accuracy, report.labelled)} of {report.labelled:,} with a known label"
        )
    facts.add_row("speed", f"{report.images_per_second:,.1f} img/s, {report.seconds:.2f} s in all")
    facts.add_row("model", f"{report.model}, {report.precision}, {report.backend}, batch {report.batch_size}")
    facts.add_row("peak memory", f"{report.peak_memory_mb:,.0f} MB")
    facts.add_row("rows", "standard output" if report.out == "-" else report.out)
    stages = Table(title="Milliseconds an image", title_justify="left", caption_justify="left")
    stages.add_column("stage")
    for name in ("p50", "p90", "p99", "share"):
        stages.add_column(name, justify="right")
    for stage, summary in report.stages.items():
        stages.add_row(
            stage,
            f"{summary.p50_ms:.2f}",
            f"{summary.p90_ms:.2f}",
            f"{summary.p99_ms:.2f}",
            f"{100 * summary.share:.0f} %",
        )
    if report.bottleneck:
        stages.caption = f"bottleneck: {report.bottleneck}"
    return facts, stages


def _facts(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Progress]:
    """A bar with one task, on a terminal; nothing elsewhere."""
    bar = Progress(
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        bar.add_task(title, total=None)
        yield bar
