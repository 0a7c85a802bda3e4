"""Accuracy over latency of what `edgecls bench` measured, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure  # not pyplot: no display, no global state
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from edgecls.bench.run import BenchResult
from edgecls.metrics import wilson_interval
from edgecls.runs import atomic_path

_OF_PRECISION: Final = {"fp32": "#555555", "fp16": "#7a4fb5", "int8": "#c2571a", "int8-cpu": "#0b6fb8"}


@dataclass(frozen=True)
class SpeedPoint:
    """A model file on a backend: milliseconds an image at its best batch, and top-1 with its 95 % interval, 0 to 1."""

    name: str
    precision: str
    ms: float
    accuracy: float
    interval: tuple[float, float]


def draw_bench(result: BenchResult, path: Path) -> None:
    """Draw accuracy over latency of what `bench` measured.

    Raises:
        RunError: it cannot be written.
    """
    points, n_images = [], 0
    for each in result.contenders:
        best, known = each.best, each.accuracy
        if best is not None and known is not None:
            n_images = known.n_images
            name = f"{each.precision.upper()}, {each.backend}\nbatch {best.batch_size}: {best.ms_an_image:.3g} ms"
            interval = wilson_interval(known.top1, known.n_images)
            points.append(SpeedPoint(name, each.precision, best.ms_an_image, known.top1, interval))
    figure = accuracy_over_latency(points, f"Top-1 on {n_images:,} images over latency: {Path(result.model).name}")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def on_front(point: SpeedPoint, points: Sequence[SpeedPoint]) -> bool:
    """Whether nothing else is as good in both, accuracy and latency, and better in one."""
    return not any(
        other.ms <= point.ms
        and other.accuracy >= point.accuracy
        and (other.ms, other.accuracy) != (point.ms, point.accuracy)
        for other in points
    )


def accuracy_over_latency(points: Sequence[SpeedPoint], title: str) -> Figure:
    """A point each; those that nothing beats in both are filled and joined."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    front = sorted((point for point in points if on_front(point, points)), key=lambda point: point.ms)
    axes.step(
        [p.ms for p in front], [p.accuracy for p in front], where="post", color="#b0b0b0", linewidth=1.5, zorder=1
    )
    for point in points:
        colour = _OF_PRECISION.get(point.precision, "black")
        # at 100 % the interval ends there, but for rounding
        errors = [[max(0.0, point.accuracy - point.interval[0])], [max(0.0, point.interval[1] - point.accuracy)]]
        fill = colour if point in front else "white"
        axes.errorbar(
            point.ms, point.accuracy, yerr=errors, fmt="o", color=colour, markerfacecolor=fill, markersize=9,
            elinewidth=1.2, capsize=4,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(min(p.ms for p in points) / 1.8, max(p.ms for p in points) * 1.8)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = min(p.interval[0] for p in points), max(p.interval[1] for p in points)
    axes.set_ylim(low - 0.4 * (high - low), high + 0.4 * (high - low))  # room for names
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %" if value <= 1 else ""))
    axes.set_xlabel("milliseconds an image, at the best batch (lower is better)")
    axes.set_ylabel("top-1 (bars: 95 % interval)")
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.plot([], [], "o-", color="#8a8a8a", label="Pareto front")
    beaten = "another one is no worse in both, and better in one"
    axes.plot([], [], "o", color="#8a8a8a", markerfacecolor="white", label=beaten)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _name_points(figure, axes, points)
    return figure


def _name_points(figure: Figure, axes: Axes, points: Sequence[SpeedPoint]) -> None:
    """A name near each point, where it covers no point and no other name, and bars only if it must."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is measured now stays where it is
    inside, pixels = axes.get_window_extent(), figure.dpi / 72  # a place is in points, a 72nd of an inch
    names, bars, dots = list[Bbox](), list[Bbox](), list[Bbox]()
    for point in points:
        (x, low), (_, y), (_, high) = axes.transData.transform(
            [(point.ms, each) for each in (point.interval[0], point.accuracy, point.interval[1])]
        )
        bars.append(Bbox.from_extents(x - 6, low, x + 6, high))
        dots.append(Bbox.from_extents(x - 10, y - 10, x + 10, y + 10))
    for point, dot in sorted(zip(points, dots, strict=True), key=lambda each: each[0].ms):
        name = axes.annotate(
            point.name, (point.ms, point.accuracy), (0, 0), textcoords="offset points", fontsize=9, va="center",
            ha="center", color=_OF_PRECISION.get(point.precision, "black"), zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            arrowprops={"arrowstyle": "-", "color": "#a0a0a0", "shrinkB": 5},
        )  # fmt: skip
        size = Text.get_window_extent(name)
        best: tuple[float, tuple[float, float], Bbox] | None = None
        for right, up in product(range(-160, 161, 20), range(-170, 171, 10)):
            x, y = (dot.x0 + dot.x1) / 2 + right * pixels, (dot.y0 + dot.y1) / 2 + up * pixels
            half_width, half_height = size.width / 2 + 5, size.height / 2 + 5
            box = Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)
            outside = not (inside.containsx(box.x0) and inside.containsx(box.x1))
            outside |= not (inside.containsy(box.y0) and inside.containsy(box.y1))
            cost = 4000 * (outside + sum(map(box.overlaps, names)) + sum(map(box.overlaps, dots)))
            cost += 150 * sum(map(box.overlaps, bars)) + abs(right) + abs(up)
            if best is None or cost < best[0]:
                best = cost, (right, up), box
        if best is not None:
            name.set_position(best[1])
            names.append(best[2])
