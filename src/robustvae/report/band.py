"""The band: which tolerance is certified, and which one attacks break, by the size of the change.

Below the attacked line a tolerance is known to be broken by a change of that size; above the
certified line nothing of that size breaks it; between the two nobody knows. The bracket at the
audit's r is the cut along the dashed line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from robustvae.records import Record
from robustvae.records.along import ATTACKED, CERTIFIED
from robustvae.report import marks
from robustvae.report.drawing import (
    Axis,
    draw_legend,
    draw_svg,
    draw_text,
    draw_y_axis,
    trimmed,
)
from robustvae.report.marks import Mark
from robustvae.report.reading import rows_of
from robustvae.rounding import ceil, floor, given, near, norm, number

_STEPS = 160  # places along the size at which medians are taken: finer than a pixel shows


@final
@dataclass(frozen=True)
class InputBand:
    """One input's band: points (size, tolerance), by size.

    Attributes:
        certified: No change below that size breaks the tolerance.
        attacked: A change of that size breaks every smaller tolerance.
    """

    certified: tuple[tuple[float, float], ...]
    attacked: tuple[tuple[float, float], ...]

    def certified_at(self, size: float) -> float:
        """The least tolerance certified against changes of that size; infinite for none."""
        return min((r for radius, r in self.certified if radius >= size), default=math.inf)

    def attacked_at(self, size: float) -> float:
        """The largest tolerance that changes of at most that size were seen to break."""
        return max((r for budget, r in self.attacked if budget <= size), default=0.0)


def input_bands(record: Record) -> list[InputBand]:
    """The bands of all inputs of the first victim of which anything is known along r.

    Args:
        record: Read: certified, its values along r, tolerances under attack, attacked margins.
    """
    r, kind = record.question.r, record.question.norm
    by_input: dict[Any, list[dict[str, Any]]] = {}
    for row in rows_of(record):
        by_input.setdefault(row.get("input"), []).append(row)
    bands = []
    for rows in by_input.values():
        first = rows[0]
        certified = [(number(first.get(key)), times * r) for key, times in CERTIFIED.items()]
        attacked: list[tuple[float | None, float | None]] = [
            (number(first.get(key)), r)
            for key in ("margin_upper_unconstrained", "margin_upper_box")
        ]
        measured = any(
            number(first.get(key)) is not None for key in CERTIFIED if key != "certified"
        )
        for row in rows:
            size = number(row.get("size"))
            if row.get("norm") != kind or size is None:
                continue
            for key, share in ATTACKED.items():
                tolerance = number(row.get(key))
                measured |= tolerance is not None
                attacked.append((share * size, tolerance))
        if measured:
            bands.append(InputBand(_known(certified), _known(attacked)))
    return bands


def _known(points: Sequence[tuple[float | None, float | None]]) -> tuple[tuple[float, float], ...]:
    """The points of which both numbers are known, positive and finite, by size."""
    pairs = [(a, b) for a, b in points if a is not None and b is not None]
    return tuple(sorted((a, b) for a, b in pairs if 0 < a < math.inf and 0 < b < math.inf))


def band(record: Record, width: int = 760) -> str:
    """Certified and attacked tolerance by the size of the change: medians, and every input.

    Args:
        record: Read as by `input_bands`.
        width: Of the drawing in pixels.

    Returns:
        SVG, or "" where nothing was measured along r.
    """
    members = input_bands(record)
    ends = [point for one in members for point in (*one.certified, *one.attacked)]
    if not ends:
        return ""
    r = record.question.r
    has_proofs = any(one.certified for one in members)
    keys: list[tuple[str, Mark]] = []
    if has_proofs:
        keys.append(("certified: no change of this size breaks it", marks.bar("proved")))
    keys.append(("attacked: a change of this size breaks it", marks.dot("free", 4)))
    if has_proofs:
        keys.append(("not known", marks.bar("gap")))
    key, top = draw_legend(keys, width, 60)
    top, wide = top + 12, width >= 560
    bottom = top + (300 if wide else 240)
    left, right = 52.0, width - (62.0 if wide else 14.0)
    horizontal = Axis(0.0, 1.04 * max(size for size, _ in ends), left, right)
    highest = max(
        2.0 * r if has_proofs else r,
        max(t for one in members for _, t in one.attacked or ((0, r),)),
    )
    upwards = Axis(0.0, 1.06 * highest, bottom, top)
    sizes = [horizontal.high * (k + 0.5) / _STEPS for k in range(_STEPS)]
    # of two middle inputs each line takes the one that claims less
    lower = [_middle([one.attacked_at(size) for one in members], 1) for size in sizes]
    upper = [_middle([one.certified_at(size) for one in members], 0) for size in sizes]
    parts = [key, *draw_y_axis(upwards, left, right)]
    for tick in horizontal.ticks():
        parts.append(draw_text(horizontal(tick), bottom + 16, trimmed(near(tick)), anchor="middle"))
    if has_proofs:
        parts.append(_between(sizes, lower, upper, horizontal, upwards))
    for one in members:
        for radius, tolerance in one.certified:
            parts.append(_tick(horizontal(radius), upwards(tolerance)))
        for budget, tolerance in one.attacked:
            parts.append(_faint(horizontal(budget), upwards(min(tolerance, upwards.high))))
    parts.append(_stairs("free", sizes, lower, horizontal, upwards))
    parts.append(_stairs("proved", sizes, upper, horizontal, upwards))
    parts.append(f'<path class="limit" d="M{left} {upwards(r):.1f}H{right:.1f}"/>')
    if wide:
        parts.append(draw_text(right + 6, upwards(r) + 4, f"r = {given(r)}"))
    parts.append(f'<path class="axis" d="M{left} {bottom:.1f}H{right:.1f}"/>')
    parts.append(draw_text(left - 44, top - 12, "tolerance of the output (ℓ₂)"))
    words = f"size of the change ({norm(record.question.norm)}), {len(members)} inputs"
    parts.append(draw_text((left + right) / 2, bottom + 34, words, anchor="middle"))
    label = "Tolerance by size of the change. " + _in_words(sizes, lower, upper, r)
    return draw_svg(width, bottom + 46, label, parts)


def _middle(values: Sequence[float], less: int) -> float:
    """The upper of two middle values, or the lower one for `less` = 1."""
    return sorted(values)[(len(values) - less) // 2]


def _stairs(
    kind: str, sizes: Sequence[float], values: Sequence[float], across: Axis, upwards: Axis
) -> str:
    half = (sizes[1] - sizes[0]) / 2
    path, pen = "", "M"
    for size, value in zip(sizes, values, strict=True):
        if not 0 < value <= upwards.high:
            pen = "M"
            continue
        y = upwards(value)
        path += f"{pen}{across(size - half):.1f} {y:.1f}H{across(size + half):.1f}"
        pen = "L"
    return f'<path class="shares {kind}" d="{path}"/>' if path else ""


def _between(
    sizes: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    across: Axis,
    upwards: Axis,
) -> str:
    half = (sizes[1] - sizes[0]) / 2
    there, back = "", ""
    for size, low, high in zip(sizes, lower, upper, strict=True):
        a, b = across(size - half), across(size + half)
        there += f"L{a:.1f} {upwards(min(high, upwards.high)):.1f}H{b:.1f}"
        back = f"L{b:.1f} {upwards(min(low, upwards.high)):.1f}H{a:.1f}" + back
    return f'<path class="gap" d="M{there[1:]}{back}Z"/>'


def _tick(x: float, y: float) -> str:
    return f'<path class="shares proved" style="opacity:.35" d="M{x - 3:.1f} {y:.1f}h6"/>'


def _faint(x: float, y: float) -> str:
    return f'<circle class="free" style="opacity:.3" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>'


def _in_words(
    sizes: Sequence[float], lower: Sequence[float], upper: Sequence[float], r: float
) -> str:
    safe = max((size for size, value in zip(sizes, upper, strict=True) if value <= r), default=0.0)
    broken = min((size for size, v in zip(sizes, lower, strict=True) if v >= r), default=math.inf)
    words = [f"median input at r = {given(r)}:"]
    words.append(f"certified up to size {floor(safe)}," if safe else "nothing certified,")
    words.append("no attack broke it." if math.isinf(broken) else f"broken at {ceil(broken)}.")
    return " ".join(words)
