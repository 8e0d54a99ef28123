"""Figures of one quantity along another: damage against size, and what each class is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from robustvae.records import Record
from robustvae.report import marks
from robustvae.report.drawing import (
    Axis,
    draw_legend,
    draw_svg,
    draw_text,
    draw_y_axis,
    escaped,
    fitted,
    trimmed,
)
from robustvae.report.marks import Mark
from robustvae.report.reading import Bracket, brackets, finite, mean, rows_of
from robustvae.rounding import ceil, floor, given, near, norm, number

_SHARES = (("damage_at_25", 0.25), ("damage_at_50", 0.5), ("damage_at_75", 0.75), ("damage", 1.0))
MOST_CLASSES = 24  # more lines than that are a list, not a picture


def damage_curve(record: Record, width: int = 760) -> str:
    """Damage against the size of the change: median, quarters and extremes over the inputs.

    Args:
        record: Read: size, damage and the damages at parts of the change.
        width: Of the drawing in pixels.

    Returns:
        SVG with a panel for each ball, or "" where nothing was measured along the way.
    """
    balls: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for row in rows_of(record):
        if number(row.get("damage_at_50")) is not None and finite([row.get("damage")]):
            balls.setdefault((row.get("norm"), row.get("radius")), []).append(row)
    if not balls:
        return ""
    keys: list[tuple[str, Mark]] = [
        ("median input", marks.dot("free", 4)),
        ("half of the inputs", marks.bar("gap")),
        ("all inputs", marks.bar("gap2")),
    ]
    key, y = draw_legend(keys, width, 8)
    parts, words = [key], []
    for (kind, radius), rows in balls.items():
        panel, y, sentence = _curve_panel(str(kind), radius, rows, record.question.r, width, y)
        parts += panel
        words.append(sentence)
    label = "Damage against the size of the change. " + "; ".join(words) + "."
    return draw_svg(width, y, label, parts)


def _curve_panel(
    kind: str, radius: Any, rows: Sequence[dict[str, Any]], r: float, width: int, y: float
) -> tuple[list[str], float, str]:
    # an attack may end inside its ball: the places are parts of the size that it spent
    spent = _quantile(sorted(finite(row.get("size") for row in rows)) or [float(radius)], 0.5)
    sizes = [0.0, *(share * spent for _, share in _SHARES)]
    columns = [sorted(finite(row.get(key) for row in rows)) for key, _ in _SHARES]
    stations = [
        (0.0,) * 5,
        *(tuple(_quantile(c, q) for q in (0, 0.25, 0.5, 0.75, 1)) for c in columns),
    ]
    top, bottom = y + 36, y + 186
    left, right = 52.0, width - (62.0 if width >= 560 else 14.0)
    horizontal = Axis(0.0, float(radius), left, right)
    upwards = Axis(0.0, max(r, *(station[4] for station in stations)) * 1.06, bottom, top)
    parts = [
        draw_text(
            8, y + 20, f"{norm(kind)} up to {given(radius)}, {len(rows)} inputs", kind="strong"
        )
    ]
    parts += draw_y_axis(upwards, left, right)

    def line(q: int) -> list[str]:
        pairs = zip(sizes, stations, strict=True)
        return [f"{horizontal(size):.1f} {upwards(station[q]):.1f}" for size, station in pairs]

    for low, high, band in ((0, 4, "gap2"), (1, 3, "gap")):
        corners = "L".join([*line(high), *reversed(line(low))])
        parts.append(f'<path class="{band}" d="M{corners}z"/>')
    parts.append(f'<path class="shares free" d="M{"L".join(line(2))}"/>')
    for size, station in list(zip(sizes, stations, strict=True))[1:]:
        title = f"size {near(size)}: median damage {near(station[2])}, worst {near(station[4])}"
        mark = marks.dot("free", 3.6)(horizontal(size), upwards(station[2]))
        parts.append(f"<g><title>{escaped(title)}</title>{mark}</g>")
    parts.append(f'<path class="limit" d="M{left} {upwards(r):.1f}H{right}"/>')
    place = (right + 6, upwards(r) + 4) if width >= 560 else (left + 6, upwards(r) - 5)
    parts.append(draw_text(*place, f"r = {given(r)}"))
    parts.append(f'<path class="axis" d="M{left} {bottom:.1f}H{right}"/>')
    for tick in horizontal.ticks():
        if tick <= float(radius) * (1 + 1e-9):
            parts.append(
                draw_text(horizontal(tick), bottom + 16, trimmed(near(tick)), anchor="middle")
            )
    words = f"size of change ({norm(kind)})"
    parts.append(draw_text((left + right) / 2, bottom + 34, words, anchor="middle"))
    sentence = (
        f"{norm(kind)}: median damage {near(stations[2][2])} at half the size and "
        f"{near(stations[-1][2])} at {given(radius)}, r is {given(r)}"
    )
    return parts, bottom + 46, sentence


def _quantile(ordered: Sequence[float], q: float) -> float:
    """A quantile of sorted numbers, linear between neighbors."""
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def classes(record: Record, width: int = 760) -> str:
    """Mean bracket of each class, the least robust first.

    Args:
        record: Read: label, certified and the attacked bounds.
        width: Of the drawing in pixels.

    Returns:
        SVG, or "" where there is one class, or too many for a picture, or no margin.
    """
    groups: dict[Any, list[Bracket]] = {}
    for bracket in brackets(rows_of(record)):
        if bracket.label is not None:
            groups.setdefault(bracket.label, []).append(bracket)
    lines = [
        (label, len(members), *(_class_mean(members, end) for end in ("certified", "upper")))
        for label, members in groups.items()
    ]
    if not 1 < len(lines) <= MOST_CLASSES or all(line[3] is None for line in lines):
        return ""
    lines.sort(key=lambda line: (math.inf if line[3] is None else line[3], str(line[0])))
    keys: list[tuple[str, Mark]] = [
        ("certified, mean", marks.bar("proved")),
        ("attacked, mean", marks.dot("free", 4)),
    ]
    key, y = draw_legend(keys, width, 30)
    left, right = 92.0, width - 122.0
    ends = finite(end for line in lines for end in line[2:])
    scale = Axis(0.0, max(ends) * 1.06 or 1.0, left, right)
    parts, words = [key], []
    height = 24.0
    bottom = y + height * len(lines)
    for tick in scale.ticks():
        parts.append(f'<path class="grid" d="M{scale(tick):.1f} {y:.1f}V{bottom:.1f}"/>')
        parts.append(draw_text(scale(tick), bottom + 16, trimmed(near(tick)), anchor="middle"))
    for i, (label, count, certified, attacked) in enumerate(lines):
        middle = y + height * (i + 0.5)
        parts.append(draw_text(8, middle + 4, fitted(f"class {label}, {count}", left)))
        if certified:
            bar = (
                f'height="8" x="{left}" y="{middle - 4:.1f}" width="{scale(certified) - left:.1f}"'
            )
            parts.append(f'<rect class="proved" {bar}/>')
        if attacked is not None:
            begin = scale(certified or 0.0)
            bar = f'height="8" x="{begin:.1f}" y="{middle - 4:.1f}"'
            length = max(scale(attacked) - begin, 0.0)
            parts.append(f'<rect class="gap" {bar} width="{length:.1f}"/>')
            parts.append(marks.dot("free", 4)(scale(attacked), middle))
        text = " to ".join(
            form(value)
            for form, value in ((floor, certified), (ceil, attacked))
            if value is not None
        )
        parts.append(draw_text(right + 12, middle + 4, text, kind="strong"))
        words.append(f"class {label}: {text}")
    place = (left + right) / 2
    parts.append(draw_text(place, bottom + 34, "size of change (ℓ₂)", anchor="middle"))
    label = "Mean bracket of each class. " + "; ".join(words) + "."
    return draw_svg(width, bottom + 46, label, parts)


def _class_mean(members: Sequence[Bracket], end: str) -> float | None:
    """Mean over a class; None where nothing was measured, or where an end is open."""
    values = [value for b in members if (value := getattr(b, end)) is not None]
    return mean(values) if values and all(map(math.isfinite, values)) else None


def signal(values: Sequence[Sequence[float]], low: float, high: float, label: str) -> str:
    """A signal as a line for each channel, or a row of a table as bars.

    Args:
        values: A list for each channel.
        low: What the lower edge stands for.
        high: What the upper edge stands for.
        label: What it is, for those who cannot see it.

    Returns:
        SVG of 160 by 90.
    """
    width, height = 160.0, 90.0
    count = max(map(len, values))
    upwards = Axis(low, high if high > low else low + 1.0, height - 4, 4)
    zero = upwards(min(max(0.0, low), high))
    parts = [f'<path class="axis" d="M0 {zero:.1f}H{width:.0f}"/>']
    if len(values) == 1 and count <= _MOST_BARS:
        step = width / count
        for i, value in enumerate(values[0]):
            y = upwards(value)
            parts.append(
                f'<rect class="proved" x="{(i + 0.15) * step:.1f}" y="{min(y, zero):.1f}" '
                f'width="{0.7 * step:.1f}" height="{max(abs(y - zero), 0.5):.1f}"/>'
            )
    else:
        for channel, kind in zip(values, ("proved", "free", "box", "proved"), strict=False):
            step = width / max(len(channel) - 1, 1)
            points = "L".join(f"{i * step:.1f} {upwards(v):.1f}" for i, v in enumerate(channel))
            parts.append(f'<path class="shares {kind}" d="M{points}"/>')
    return draw_svg(width, height, label, parts)


_MOST_BARS = 64  # a longer row is a signal: its bars would be hairlines
