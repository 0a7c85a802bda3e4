"""What `edgecls bench` prints: the machine, the speeds, start and memory, the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table
from rich.text import Text

from edgecls.tables.common import PRECISION_NAMES, facts_table, percent

if TYPE_CHECKING:
    from edgecls.bench.contender import Cell, Contender
    from edgecls.bench.machine import Machine, MachineState
    from edgecls.bench.run import BenchResult, LayerProfile


_N_LAYERS: Final = 15

_NAME_WIDTH: Final = 28  # of a layer; names begin alike and end apart


def benched(result: BenchResult) -> list[Table | Text]:
    """The machine, the speeds, the files; the layers where they were timed; and what to be careful about."""
    return [
        _machine(result.machine, result.before, result.after),
        _sweep(result),
        _start_and_memory(result.contenders),
        *(_layers(profile) for profile in result.layers),
        *(Text(f"warning: {warning}", style="yellow") for warning in result.warnings),
    ]


def _machine(about: Machine, before: MachineState, after: MachineState) -> Table:
    facts = facts_table("Machine")
    of = f" of {about.machine_cores}" if about.machine_cores != about.cores else ""
    facts.add_row("CPU", f"{about.cpu}, {about.cores}{of} cores")
    facts.add_row("  has", ", ".join(about.cpu_features) or "-")
    if before.cpu_clock_limit_mhz is not None:
        governor = f", governor {about.governor}" if about.governor else ""
        facts.add_row("  clock", f"up to {before.cpu_clock_limit_mhz:,.0f} MHz{governor}")
    if about.memory_mb is not None:
        facts.add_row("memory", f"{about.memory_mb / 1000:.1f} GB")
    if about.gpu:
        major, minor = about.gpu.compute_capability
        clock = "" if before.gpu_clock_limit_mhz is None else f", up to {before.gpu_clock_limit_mhz:,.0f} MHz"
        facts.add_row("GPU", f"{about.gpu.name}, {major}.{minor}, {about.gpu.total_bytes / 1e9:.1f} GB{clock}")
    for name, value in (("board", about.board), ("L4T", about.l4t), ("power mode", about.power_mode)):
        if value:
            facts.add_row(name, value)
    hot = [f"{name} {before.temperatures.get(name, celsius):.0f} to {celsius:.0f}" for name, celsius in
           sorted(after.temperatures.items(), key=lambda each: -each[1])[:3]]  # fmt: skip
    if hot:
        facts.add_row("°C", ", ".join(hot))
    facts.add_row("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items()))
    return facts


def _sweep(result: BenchResult) -> Table:
    """By batch size a row for each file and backend: times of a call, and images a second."""
    title = f"Inference, {result.n_rounds} rounds, {result.seconds:.0f} s in all"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("batch", justify="right")
    for name in ("precision", "backend"):
        table.add_column(name, no_wrap=True)
    for name in ("p50 ms", "p90", "p99", "img/s"):
        table.add_column(name, justify="right", no_wrap=True)
    cells = [(each, cell) for each in result.contenders for cell in each.cells]
    for size in sorted({cell.batch_size for _, cell in cells}):
        rows = [(each, cell) for each, cell in cells if cell.batch_size == size]
        soonest = min(cell.p50_ms for _, cell in rows)
        most = max(cell.images_per_second for _, cell in rows)
        for index, (each, cell) in enumerate(rows):
            table.add_row(
                "" if index else str(size),
                PRECISION_NAMES[each.precision],
                each.backend,
                _marked(_ms(cell.p50_ms), len(rows) > 1 and cell.p50_ms == soonest),
                _ms(cell.p90_ms),
                _ms(cell.p99_ms),
                _marked(f"{cell.images_per_second:,.0f}", len(rows) > 1 and cell.images_per_second == most),
            )
        table.add_section()
    table.caption = f"{_how(result)}\n* fastest at that batch"
    return table


def _how(result: BenchResult) -> str:
    lanes = {each.device in ("cpu", "openvino"): cell.n_lanes for each in result.contenders for cell in each.cells}
    places = [f"{n} on the {'CPU' if on_cpu else 'GPU'}" for on_cpu, n in sorted(lanes.items(), reverse=True)]
    return f"ms: one call at a time; img/s: calls at a time, {', '.join(places)}"


def _marked(text: str, is_best: bool) -> Text:
    return Text(f"*{text}", style="bold green") if is_best else Text(text)


def _ms(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _start_and_memory(contenders: Sequence[Contender]) -> Table:
    table = Table(title="Files, start and memory", title_justify="left", caption_justify="left", box=box.SIMPLE)
    on_gpu = any(cell.gpu_memory_mb is not None for each in contenders for cell in each.cells)
    for name in ("precision", "backend"):
        table.add_column(name, no_wrap=True)
    for name in ("file\nMB", "start\nms", "MB", "MB, all\nlanes", *(["GPU\nMB"] if on_gpu else []), "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in contenders:
        gpu = [_span(each.cells, lambda cell: cell.gpu_memory_mb)] if on_gpu else []
        table.add_row(
            PRECISION_NAMES[each.precision],
            each.backend,
            f"{each.bytes / 1e6:.2f}",
            "failed" if each.start_ms is None else f"{each.start_ms:,.0f}",
            _span(each.cells, lambda cell: cell.peak_memory_mb),
            _span(each.cells, lambda cell: cell.lanes_peak_memory_mb),
            *gpu,
            percent(each.accuracy.top1) if each.accuracy else "-",
        )
    table.caption = "start: opening to first answer; MB: peak, smallest to largest batch"
    return table


def _span(cells: Sequence[Cell], of: Callable[[Cell], float | None]) -> str:
    values = [value for cell in cells if (value := of(cell)) is not None]
    if not values:
        return "-"
    low, high = f"{values[0]:,.0f}", f"{values[-1]:,.0f}"
    return low if low == high else f"{low}-{high}"


def _layers(profile: LayerProfile) -> Table | Text:
    of = f"{PRECISION_NAMES[profile.precision]}, {profile.backend}"
    if not profile.layers:
        return Text(f"Layers of {of}: {profile.note}")
    shown = profile.layers[:_N_LAYERS]
    title = f"Layers of {of}, batch {profile.batch_size}"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    table.add_column("kind", overflow="fold")
    for layer in shown:
        name = layer.name.removesuffix("/WithoutBiases")  # OpenVINO says so of every one
        short = name if len(name) <= _NAME_WIDTH else "…" + name[1 - _NAME_WIDTH :]
        table.add_row(f"{layer.ms:.3f}", f"{layer.ms / profile.layers_ms:.1%}", Text(short), Text(layer.kind))
    part = math.fsum(layer.ms for layer in shown) / profile.layers_ms
    table.caption = (
        f"{len(shown)} of {len(profile.layers)} layers, {part:.0%} of the layers' {_ms(profile.layers_ms)} ms; "
        f"a call took {_ms(profile.call_ms)} ms while they were timed" + (f"\n{profile.note}" if profile.note else "")
    )
    return table
