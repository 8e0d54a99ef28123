"""The Pareto picture: robustness against what it costs, and the rows that no other row beats."""

from __future__ import annotations

import math

from robustvae.report import marks
from robustvae.report.compare import CLEAN_ERROR, COST
from robustvae.report.drawing import Axis, draw_legend, draw_svg, draw_text, draw_y_axis, trimmed
from robustvae.report.tables import Heading, Table
from robustvae.rounding import near

ROBUSTNESS = (
    "margin_upper_box",
    "margin_upper_unconstrained",
    "certified_deterministic",
    "certified_probabilistic",
)
"""Columns of robustness, the first that a table has is drawn."""

AGAINST = (CLEAN_ERROR, COST.id)
# where a row's number may stand beside its dot, in pixels, the best place first
_BESIDE = ((14.0, 0.0), (0.0, -13.0), (-14.0, 0.0), (0.0, 13.0))
_ROOM = 12.0  # between the middles of a number and of a dot or another number: its height


def pareto(table: Table, key: str, against: str = CLEAN_ERROR) -> list[int]:
    """Rows that no other row beats in both a robustness column and its price.

    Args:
        table: Of `compare`.
        key: Id of the column, such as "margin_upper_box" or "certified".
        against: Id of the price: "error_clean", or "cost" in gradients and passes.

    Returns:
        Places of the rows, the lowest price first.

    Examples:
        >>> from robustvae.report.pareto import pareto
        >>> from robustvae.report.tables import Cell, Heading, Row, Table
        >>> numbers = [(1, 0.1), (50, 0.5), (60, 0.4)]
        >>> rows = tuple(Row({}, {"cost": Cell(c), "certified": Cell(m)}) for c, m in numbers)
        >>> pareto(Table("t", (Heading("certified", "c"),), rows), "certified", "cost")
        [0, 1]
    """
    pairs = _pairs(table, key, against)
    front = [
        place
        for place, (price, margin) in pairs.items()
        if not any(
            p <= price and m >= margin and (p, m) != (price, margin) for p, m in pairs.values()
        )
    ]
    return sorted(front, key=lambda place: pairs[place])


def draw_pareto(
    table: Table, key: str | None = None, against: str = CLEAN_ERROR, width: int = 420
) -> str:
    """Robustness upwards against its price; filled where no other row is better in both.

    Args:
        table: Of `compare`; a row's number in the picture is its place in the table.
        key: Id of the robustness column; by default the first that the table has.
        against: Id of the price: "error_clean", or "cost" in gradients and passes.
        width: Of the drawing in pixels.

    Returns:
        SVG, or "" where fewer than two rows have both finite numbers.
    """
    key = key or next((h.id for h in table.headings if h.id in ROBUSTNESS), "")
    pairs = _pairs(table, key, against)
    if len(pairs) < 2:
        return ""
    front = pareto(table, key, against)
    keys = [("no other is better in both", marks.dot("proved", 5))]
    if len(front) < len(pairs):
        keys.append(("another is", marks.dot("noise", 5)))
    legend, top = draw_legend(keys, width, 60)
    top += 8
    bottom, left, right = top + 230.0, 52.0, width - 24.0
    horizontal = Axis.over([price for price, _ in pairs.values()], left, right)
    upwards = Axis(0.0, 1.06 * (max(margin for _, margin in pairs.values()) or 1.0), bottom, top)
    parts = [legend, *draw_y_axis(upwards, left, right)]
    for tick in horizontal.ticks():
        words = trimmed(near(tick))
        parts.append(draw_text(horizontal(tick), bottom + 16, words, anchor="middle"))
    parts.append(f'<path class="axis" d="M{left} {bottom:.1f}H{right:.1f}"/>')
    taken = [(horizontal(price), upwards(margin)) for price, margin in pairs.values()]
    for place, (price, margin) in pairs.items():
        x, y = horizontal(price), upwards(margin)
        parts.append(marks.dot("proved" if place in front else "noise", 5)(x, y))
        right_of, above = min(_BESIDE, key=lambda one: _crowd((x + one[0], y + one[1]), taken))
        taken.append((x + right_of, y + above))
        parts.append(draw_text(x + right_of, y + above + 4, str(place + 1), anchor="middle"))
    name = {heading.id: _words(heading) for heading in (*table.headings, COST)}
    words = name.get(against, against)
    parts.append(draw_text((left + right) / 2, bottom + 34, words, anchor="middle"))
    label = f"{name.get(key, key)}, against {words}: " + "; ".join(
        f"{place + 1} {' '.join(table.rows[place].names.values())} {near(margin)} at {near(price)}"
        for place, (price, margin) in pairs.items()
    )
    return draw_svg(width, bottom + 46, label, parts)


def draw_paretos(table: Table, width: int = 420) -> str:
    """One drawing of all prices that the table knows, beside each other; "" for none.

    Examples:
        >>> from robustvae.report.pareto import draw_paretos
        >>> from robustvae.report.tables import Table
        >>> draw_paretos(Table("t", (), ()))
        ''
    """
    drawings = [drawing for key in AGAINST if (drawing := draw_pareto(table, against=key))]
    if len(drawings) < 2:
        return "".join(drawings)
    places = [
        drawing.replace("<svg ", f'<svg x="{i * width}" ', 1) for i, drawing in enumerate(drawings)
    ]
    height = max(float(drawing.split('height="')[1].split('"')[0]) for drawing in drawings)
    return draw_svg(width * len(drawings), height, "robustness against its prices", places)


def _crowd(middle: tuple[float, float], taken: list[tuple[float, float]]) -> int:
    """How many dots and numbers a number would touch."""
    return sum(math.dist(middle, other) < _ROOM for other in taken)


def _words(heading: Heading) -> str:
    return heading.label + (f" [{heading.unit}]" if heading.unit else "")


def _pairs(table: Table, key: str, against: str) -> dict[int, tuple[float, float]]:
    """Price and robustness of each row that has both."""
    pairs = {
        place: (row.cells[against].mean, row.cells[key].mean)
        for place, row in enumerate(table.rows)
        if against in row.cells and key in row.cells
    }
    return {place: pair for place, pair in pairs.items() if all(map(math.isfinite, pair))}
