"""What people see in the terminal: results as rich tables, one function a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from edgecls.manifest import Precision
from edgecls.metrics import wilson_interval

if TYPE_CHECKING:  # the results' modules load torch or ONNX Runtime
    from edgecls.export.engine import EngineResult
    from edgecls.export.run import ExportResult
    from edgecls.metrics import PairedDifference
    from edgecls.runtime.predict import PredictReport
    from edgecls.train.loop import Epoch
    from edgecls.train.run import TrainResult

_PRECISION_NAMES: Final = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8, TensorRT",
    "int8-cpu": "INT8, CPU",
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
    measured = result.precisions
    fp32 = measured["fp32"]
    title = f"Export: {fp32.n_images:,} validation images" if fp32.n_images else "Export"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("file", no_wrap=True)
    for name in ("top-1", "as FP32", "broke/fixed", "drop (95 %)", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for precision, each in measured.items():
        paired = each.paired
        table.add_row(
            _PRECISION_NAMES[precision],
            "-" if each.accuracy is None else percent(each.accuracy),
            "-" if each.agreement is None or paired is None else percent(each.agreement),
            f"{paired.broken} / {paired.fixed}" if paired else "-",
            _drop(paired) if paired else "-",
            f"{each.bytes / 1e6:.2f}",
        )
    table.caption = f"{result.verdict}: {result.reason}"
    return table


def _drop(paired: PairedDifference) -> str:
    low, high = paired.drop_interval
    return f"{100 * paired.drop:.2f} ({100 * low:.1f}, {100 * high:.1f})"


def export_details(result: ExportResult) -> Table:
    """What the verdict rests on besides accuracy: speed, what stayed float, which classes lost, how sure it is."""
    facts = _facts("What stands behind it")
    fp32 = result.precisions["fp32"]
    facts.add_row(
        "fp32 = checkpoint",
        f"logits within {result.parity.max_logit_difference:.1g} on {result.parity.n_images} golden images"
        + (
            "" if fp32.agreement is None else f", the same answer on {percent(fp32.agreement)} of the validation images"
        ),
    )
    cpu: tuple[Precision, ...] = ("fp32", "int8-cpu")
    for precision in cpu:  # what the others do on this CPU says nothing about the device
        each = result.precisions.get(precision)
        if each:
            speeds = ", ".join(f"{speed:,.0f} in batches of {size}" for size, speed in each.speeds.items())
            facts.add_row(f"img/s, {_PRECISION_NAMES[precision]}", f"{speeds} ({each.backend}, inference alone)")
    for precision, each in result.precisions.items():
        if each.paired:
            facts.add_row(
                f"answers, {_PRECISION_NAMES[precision]}",
                f"{each.paired.changed} of {each.paired.n:,} changed; equally accurate: p = {each.paired.p_value:.2g}",
            )
        if each.ece_before is not None and each.ece_after is not None:
            facts.add_row(
                f"confidence, {_PRECISION_NAMES[precision]}",
                f"off by {percent(each.ece_before)}, {percent(each.ece_after)} with temperature {each.temperature:.2f}",
            )
        if each.classes:
            worst = each.classes[0]
            facts.add_row(
                f"classes, {_PRECISION_NAMES[precision]}",
                f"{len(each.classes)} lost, most of all {worst.label}: {percent(worst.fp32)} to "
                f"{percent(worst.accuracy)} of {worst.n} images",
            )
        if each.given_back:
            facts.add_row(f"float in {_PRECISION_NAMES[precision]}", ", ".join(each.given_back))
    for note in result.notes:
        facts.add_row("note", note)
    if result.n_calibration:
        facts.add_row("ranges", f"{result.method}, {result.n_calibration:,} calibration images")
    if result.engine:
        state = "as built before" if result.engine.reused else f"built in {result.engine.seconds:.1f} s"
        facts.add_row("engine", f"{result.engine.file}, {state}")
    facts.add_row("time", f"{result.seconds:.1f} s")
    facts.add_row("run", str(result.run))
    return facts


def built(result: EngineResult) -> Table:
    facts, record = _facts("Engine"), result.record
    facts.add_row("file", str(result.file))
    facts.add_row("state", "as built before: nothing changed" if result.reused else f"built in {result.seconds:.1f} s")
    facts.add_row("size", f"{result.bytes / 1e6:.2f} MB")
    facts.add_row("precision", _PRECISION_NAMES[record.precision])
    facts.add_row("batches", f"{record.batch.min} to {record.batch.max}, fastest at {record.batch.opt}")
    facts.add_row("runs on", record.runs_on)
    facts.add_row("built by", f"{record.flavour} {record.tensorrt}")
    return facts


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
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        bar.add_task(title, total=None)
        yield bar
