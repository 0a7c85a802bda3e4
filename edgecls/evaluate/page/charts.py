"""Charts as SVG inside a page: they follow its colours, light or dark, and print sharply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 26, 12, 44  # room for the axes
_DASHES: Final = ("", "7 4", "2 3", "10 3 2 3")  # so that colour is not the only sign
_N_COLOURS: Final = 4  # classes c0 to c3 of the style sheet
_N_TICKS: Final = 5


@dataclass(frozen=True)
class Series:
    """A line of a chart, or points where `is_line` is false, each with its name.

    Attributes:
        names: shown beside the points; empty for none.
    """

    title: str
    x: Sequence[float]
    y: Sequence[float]
    is_line: bool = True
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and from where to where; None is told by the numbers.

    Attributes:
        is_share: written in per cent.
    """

    title: str
    low: float | None = None
    high: float | None = None
    is_share: bool = False

    def text(self, value: float) -> str:
        return f"{100 * value:.4g} %" if self.is_share else f"{value:.4g}"


def chart(title: str, x_axis: Axis, y_axis: Axis, series: Sequence[Series], marks: Sequence[float] = ()) -> Markup:
    """Lines and points over two axes, with a legend below where there are several.

    Args:
        marks: places on the x-axis that get a vertical line.
    """
    x_low, x_high = _limits(x_axis, [value for each in series for value in each.x])
    y_low, y_high = _limits(y_axis, [value for each in series for value in each.y])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low or 1)
        up = min(max((y - y_low) / (y_high - y_low or 1), 0), 1)  # what lies outside the axis is drawn at its end
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" class="chart">']
    for value in _ticks(y_low, y_high):
        _, y = at(x_low, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(y_axis.text(value))}</text>')
    for value in _ticks(x_low, x_high):
        x, _ = at(value, y_low)
        y = _HEIGHT - _BOTTOM + 16
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(x_axis.text(value))}</text>')
    for value in marks:
        x, _ = at(value, y_low)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for index, each in enumerate(series):
        points = [at(x, y) for x, y in zip(each.x, each.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        parts += _drawn(each, points, index)
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f'{escape(x_axis.title)}</text><text class="axis" transform="translate(13 {_HEIGHT / 2 - 10}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_axis.title)}</text></svg>'
    )
    return Markup("".join(parts) + _legend(series))


def _drawn(series: Series, points: Sequence[tuple[float, float]], index: int) -> list[str]:
    colour = f"c{index % _N_COLOURS}"
    if series.is_line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = _DASHES[index % len(_DASHES)]
        return [f'<polyline class="line {colour}" stroke-dasharray="{dashes}" points="{path}"/>']
    parts = []
    names = series.names or [""] * len(points)
    for (x, y), name in zip(points, names, strict=True):
        is_right = x > 0.6 * _WIDTH
        beside, anchor = (x - 9, "end") if is_right else (x + 9, "start")
        parts.append(f'<circle class="point {colour}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        parts.append(f'<text x="{beside:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return parts


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    entries = [
        '<li><svg viewBox="0 0 34 10" width="34" height="10" aria-hidden="true">'
        + (
            f'<line class="line c{i % _N_COLOURS}" stroke-dasharray="{_DASHES[i % len(_DASHES)]}" x1="1" x2="33" y1="5"'
            f' y2="5"/>'
            if each.is_line
            else f'<circle class="point c{i % _N_COLOURS}" cx="17" cy="5" r="4"/>'
        )
        + f"</svg> {escape(each.title)}</li>"
        for i, each in enumerate(series)
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _limits(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low = min(finite) if axis.low is None else axis.low
    high = max(finite) if axis.high is None else axis.high
    room = 0.06 * (high - low) or 0.5 * (abs(high) or 1)  # points on the frame are hard to see
    return low - (room if axis.low is None else 0), high + (room if axis.high is None else 0)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two limits, about five."""
    raw = (high - low) / _N_TICKS or 1
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
