"""What `edgecls models` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from edgecls.export.models import ModelsResult, ModelsRow


def listed(result: ModelsResult) -> Table:
    title = f"Networks, measured on {result.machine}" if result.machine else "Networks"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE, padding=0)
    table.add_column("--model", no_wrap=True)
    names = ["weights", "MACs", "px", "top-1", "lost"]
    if result.machine:
        names += ["FP32", "INT8", "start"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(*_cells(row, is_measured=bool(result.machine)))
    table.caption = "\n".join(_caption(result))
    return table


def _cells(row: ModelsRow, *, is_measured: bool) -> list[str]:
    network, costs = row.network, row.costs
    cells = [
        network.model,
        f"{network.parameters:.1f}",
        f"{network.macs:,.0f}",
        str(network.size),
        "-" if network.top1 is None else f"{network.top1:.1f}",
        "-" if network.int8_lost is None else f"{network.int8_lost:.1f}",
    ]
    if is_measured:
        cells += [f"{costs.fp32:,.0f}", f"{costs.int8:,.0f}", f"{costs.start_ms:.0f}"] if costs else ["-"] * 3
    return cells


def _caption(result: ModelsResult) -> list[str]:
    lines = [
        "weights, MACs (multiplications for one image of px pixels a side): in millions.",
        "top-1: published, in per cent, of the weights that a training begins with.",
        "lost: points of top-1 that INT8 lost where we measured it; see docs/models.md.",
    ]
    lines += [f"--model {row.alias} is {row.network.model}." for row in result.rows if row.alias]
    if result.machine:
        lines.append("FP32, INT8: images a second by ONNX Runtime, in batches of 16.")
        lines.append("start: milliseconds from the INT8 file to its first answer.")
    else:
        lines.append("edgecls models --measure adds the speed of each on this machine, in a few minutes.")
    return lines + [f"{row.network.model}: {row.error}" for row in result.rows if row.error]
