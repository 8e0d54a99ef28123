"""Line charts of the sections of uses: SVG in the report's colors, at any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import final

from robustvae.report.drawing import STYLE

Points = Sequence[tuple[float, float]]
Curve = tuple[str, str, Points]
"""Label, style and points of a line."""

# every line differs from the others by its dashes besides its color
STYLES = {
    "clean": "stroke:var(--guess);stroke-width:1.6;stroke-dasharray:6 3",
    "free": "stroke:var(--free);stroke-width:2.2",
    "box": "stroke:var(--box);stroke-width:2;stroke-dasharray:2 3",
    "proved": "stroke:var(--proved);stroke-width:2.6",
    "defended": "stroke:var(--defended);stroke-width:2;stroke-dasharray:9 4",
    "noise": "stroke:var(--noise);stroke-width:1.6;stroke-dasharray:1 3",
}
# of several lines in one style, each has dashes of its own
_DASHES = ("none", "9 3", "2 3", "9 3 2 3", "14 4")
_GLYPH = 6.6  # width of a character at 12 px, generous


@final
@dataclass(frozen=True)
class Frame:
    """What a chart is drawn in.

    Attributes:
        x_label: What the horizontal axis shows.
        y_label: What the vertical axis shows.
        x_max: Right end; None for the largest value.
        y_max: Upper end; None for the largest value.
        ticks: Names of places on the horizontal axis, for charts over categories.
    """

    x_label: str
    y_label: str
    x_max: float | None = None
    y_max: float | None = None
    ticks: tuple[str, ...] = ()


def lines(curves: Sequence[Curve], frame: Frame, width: int = 760) -> str:
    """Lines over a common axis.

    Args:
        curves: Label, one of `STYLES`, and points of each line.
        frame: Its axes.
        width: Of the drawing in pixels.

    Returns:
        SVG, or "" without a point.

    Examples:
        >>> from robustvae.report.profiles.charts import Frame, lines
        >>> svg = lines([("a", "free", [(0, 0), (1, 1)])], Frame("size", "share"), 400)
        >>> svg.startswith("<svg"), "polyline" in svg
        (True, True)
    """
    points = [
        point for _, _, values in curves for point in values if all(map(math.isfinite, point))
    ]
    if not points:
        return ""
    height = 300 if width >= 560 else 250
    legend, top = _legend(curves, width)
    left, right, bottom = 56.0, width - 16.0, top + height
    x_max = frame.x_max or max(x for x, _ in points) or 1.0
    y_max = frame.y_max or 1.06 * max(y for _, y in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + min(max(x / x_max, 0), 1) * (right - left),
            bottom - min(max(y / y_max, 0), 1) * (bottom - top),
        )

    parts = [legend, *_axes(frame, (left, right, top, bottom), (x_max, y_max))]
    for (label, _, values), style in zip(curves, _styles(curves), strict=True):
        finite = [place(*point) for point in values if all(map(math.isfinite, point))]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in finite)
        parts.append(
            f'<polyline fill="none" style="{style}" points="{path}">'
            f"<title>{escape(label)}</title></polyline>"
        )
        if frame.ticks:
            parts += [
                f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5" '
                f'style="{style};stroke-dasharray:none;fill:var(--card)"/>'
                for x, y in finite
            ]
    label = f"{frame.y_label} over {frame.x_label}: " + ", ".join(c[0] for c in curves)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'viewBox="0 0 {width} {bottom + 44:.0f}" width="{width}" height="{bottom + 44:.0f}" '
        f'style="max-width:{width}px" aria-label="{escape(label)}">'
        f"<style>{STYLE}</style>{''.join(parts)}</svg>"
    )


def roc(curves: Sequence[Curve], width: int = 760) -> str:
    """ROC curves: anomalies flagged against normal inputs flagged."""
    frame = Frame("normal inputs flagged", "anomalies flagged", 1.0, 1.0)
    return lines(curves, frame, min(width, 560))


def _axes(
    frame: Frame, box: tuple[float, float, float, float], top_values: tuple[float, float]
) -> list[str]:
    left, right, top, bottom = box
    x_max, y_max = top_values
    parts = []
    for value in _ticks(y_max):
        y = bottom - value / y_max * (bottom - top)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text(left - 6, y + 4, f"{value:g}", "end"))
    if frame.ticks:
        last = max(len(frame.ticks) - 1, 1)
        step = 1 if right - left > 60 * len(frame.ticks) else 2
        for i, name in enumerate(frame.ticks):
            anchor = "start" if i == 0 else "end" if i == last else "middle"
            if i % step == 0:
                parts.append(_text(left + i / last * (right - left), bottom + 16, name, anchor))
    else:
        parts += [
            _text(left + value / x_max * (right - left), bottom + 16, f"{value:g}", "middle")
            for value in _ticks(x_max)
        ]
    parts.append(f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>')
    parts.append(_text((left + right) / 2, bottom + 36, frame.x_label, "middle"))
    parts.append(_text(8, top - 8, frame.y_label))
    return parts


def _ticks(most: float) -> list[float]:
    step = 10.0 ** math.floor(math.log10(most))
    for factor in (0.2, 0.5, 1.0):
        if most / (step * factor) <= 6:
            step *= factor
            break
    return [round(i * step, 10) for i in range(int(most / step + 1e-9) + 1)]


def _styles(curves: Sequence[Curve]) -> list[str]:
    """The style of each line, told apart from the others of its kind."""
    counts: dict[str, int] = {}
    styles = []
    for _, style, _ in curves:
        place = counts.get(style, 0)
        counts[style] = place + 1
        dashes = f";stroke-dasharray:{_DASHES[place % len(_DASHES)]}" if place else ""
        styles.append(STYLES[style] + dashes)
    return styles


def _legend(curves: Sequence[Curve], width: int) -> tuple[str, float]:
    parts, x, y = [], 8.0, 16.0
    for (label, _, _), style in zip(curves, _styles(curves), strict=True):
        size = 34 + _GLYPH * len(label) + 14
        if x > 8 and x + size > width:
            x, y = 8.0, y + 20
        parts.append(f'<path fill="none" style="{style}" d="M{x:.1f} {y - 4:.1f}h26"/>')
        parts.append(_text(x + 32, y, label))
        x += size
    return "".join(parts), y + 34


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
