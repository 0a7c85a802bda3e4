"""What `edgecls export` prints: the files side by side, the verdict, the details."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from edgecls.tables.common import PRECISION_NAMES, facts_table, percent, percent_or_none

if TYPE_CHECKING:
    from edgecls.export.judge.measure import Measurement
    from edgecls.export.result import ExportResult, MembersResult
    from edgecls.metrics import PairedDifference


def exported(result: ExportResult) -> tuple[Table, str, Table]:
    """The files side by side, the verdict, and what else it rests on."""
    return _files(result), f"{result.verdict}: {result.reason}", _export_details(result)


def exported_members(result: MembersResult) -> list[Table]:
    """A line a member of an ensemble, for those who do not want to compare its tables; nothing of one run."""
    results = result.members
    if len(results) == 1:
        return []
    table = Table(title=f"Export of {len(results)} members", title_justify="left", box=box.SIMPLE)
    for name in ("member", "FP32 top-1", "points lost by INT8", "INT8 img/s over FP32's", "predict opens", "verdict"):
        table.add_column(name, justify="left" if name in ("member", "verdict") else "right")
    for each in results:
        lost = "-" if each.int8_drop is None else f"{100 * each.int8_drop:.2f}"
        speedup = "-" if each.int8_speedup is None else f"{each.int8_speedup:.2f}"
        top1 = percent_or_none(each.precisions["fp32"].accuracy) or "-"
        table.add_row(each.run.name, top1, lost, speedup, PRECISION_NAMES[each.serves], each.verdict)
    return [table]


def _files(result: ExportResult) -> Table:
    """One column a file: what it answers, what it lost, how sure it is, how fast it is."""
    files = result.precisions
    n_images = files["fp32"].n_images
    title = f"Export: {n_images:,} validation images" if n_images else "Export"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("", no_wrap=True, style="dim")
    for precision in files:
        table.add_column(PRECISION_NAMES[precision], justify="right")

    def row(name: str, cell: Callable[[Measurement], str | None]) -> None:
        cells = [cell(each) for each in files.values()]
        if any(cells):
            table.add_row(name, *(text or "-" for text in cells))

    row("top-1", lambda each: percent_or_none(each.accuracy))
    row("answers as FP32", lambda each: percent_or_none(each.agreement) if each.paired else None)
    row("broken, fixed", lambda each: f"{each.paired.broken}, {each.paired.fixed}" if each.paired else None)
    row("points lost", lambda each: f"{100 * each.paired.drop:.2f}" if each.paired else None)
    row("  95 % interval", lambda each: _interval(each.paired) if each.paired else None)
    row("  p (McNemar)", lambda each: f"{each.paired.p_value:.2g}" if each.paired else None)
    row("  most in class", lambda each: _worst_class(each))
    row("confidence off by", lambda each: percent_or_none(each.ece_before))
    row("  with temperature", lambda each: percent_or_none(each.ece_after))
    for size in files["fp32"].speeds:
        row(f"img/s, batch of {size}", partial(_speed, result=result, size=size))
    row("MB", lambda each: f"{each.bytes / 1e6:.2f}")
    return table


def _interval(paired: PairedDifference) -> str:
    low, high = paired.drop_interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _worst_class(measured: Measurement) -> str | None:
    if not measured.classes:
        return None
    worst = measured.classes[0]
    return f"{worst.label} {100 * (worst.fp32 - worst.accuracy):.1f}"


def _speed(measured: Measurement, result: ExportResult, size: int) -> str | None:
    # what the graphs for GPUs do on this CPU says nothing about the device
    for_cpu = measured in (result.precisions["fp32"], result.precisions.get("int8-cpu"))
    return f"{measured.speeds[size]:,.0f}" if for_cpu else None


def _export_details(result: ExportResult) -> Table:
    """What the verdict rests on besides the figures."""
    facts = facts_table("")
    fp32 = result.precisions["fp32"]
    facts.add_row(
        "FP32",
        f"logits within {result.parity.max_logit_difference:.1g} on {result.parity.n_images} golden images"
        + (
            "" if fp32.agreement is None else f", the same answer on {percent(fp32.agreement)} of the validation images"
        ),
    )
    for precision, each in result.precisions.items():
        if each.given_back:
            facts.add_row(f"float in {PRECISION_NAMES[precision]}", ", ".join(each.given_back))
    for note in result.notes:
        facts.add_row("note", note)
    if result.n_calibration:
        facts.add_row("ranges", f"{result.method}, {result.n_calibration:,} calibration images")
    facts.add_row("speed", f"inference alone, {fp32.backend}, on this machine")
    if result.engine:
        state = "as built before" if result.engine.reused else f"built in {result.engine.seconds:.1f} s"
        facts.add_row("engine", f"{result.engine.file}, {state}")
    facts.add_row("time", f"{result.seconds:.1f} s")
    facts.add_row("run", str(result.run))
    return facts
