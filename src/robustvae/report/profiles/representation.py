"""The section of the profile "representation": decisions, drift, neighbors, certified accuracy."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from robustvae.records.intervals import mean_stderr
from robustvae.records.parts import UseFacts
from robustvae.report.profiles import charts
from robustvae.report.profiles.detection import share
from robustvae.report.profiles.section import (
    Section,
    at_words,
    ball_words,
    balls_of,
    of_all,
    smallness,
)
from robustvae.report.tables import Cell, Heading, Row, Table
from robustvae.rounding import floor, number

HEADINGS = (
    Heading("kept", "decisions that stay", better="higher"),
    Heading("accuracy", "decisions that are right", better="higher"),
    Heading("drift", "the code moved by", "distances between two inputs", better="lower"),
    Heading("neighbor", "nearest neighbor changed", better="lower"),
    Heading("tokens", "tokens changed", better="lower"),
)


def section(use: UseFacts, victims: list[str]) -> Section:
    """The section, of the use's rows."""
    victims = [name for name in victims if _rows(use, name, "clean")]
    tables = tuple(_table(use, victim) for victim in victims)
    figures: list[Any] = []
    for victim in victims:
        radii = _certified(use, victim)
        if radii:
            curves = _curves(use, victim, radii)
            frame = charts.Frame("size of the change (l2)", "accuracy", None, 1.0)
            caption = f"{victim}: decisions that are right, certified and under attack."
            figures.append((functools.partial(charts.lines, curves, frame), caption))
    return Section(
        "Can the decision that is made on the code be changed?",
        tuple(_answer(use, victims)),
        tables,
        tuple(figures),
        (*use.notes, *_how(use)),
    )


def _rows(
    use: UseFacts, victim: str, condition: str, ball: tuple[str, float] | None = None
) -> list[dict[str, Any]]:
    return [
        row
        for row in use.rows
        if row["victim"] == victim
        and row["condition"] == condition
        and (ball is None or (row["norm"], row["radius"]) == ball)
    ]


def _kept(use: UseFacts, victim: str, ball: tuple[str, float]) -> tuple[int, int]:
    clean = {row["input"]: row["decision"] for row in _rows(use, victim, "clean")}
    rows = _rows(use, victim, "attacked", ball)
    return sum(row["decision"] == clean[row["input"]] for row in rows), len(rows)


def _right(rows: list[dict[str, Any]]) -> int:
    return sum(row["decision"] == row["label"] for row in rows)


def _answer(use: UseFacts, victims: list[str]) -> Iterable[str]:
    victim = victims[0]
    outcomes = []
    for ball in balls_of(use, victim=victim):
        kept, count = _kept(use, victim, ball)
        outcomes.append((count - kept, smallness(*ball), ball, count))
    if not outcomes:
        yield "No attack was run."
        return
    flips, _, ball, count = max(outcomes, key=lambda one: one[:2])
    yield (
        f"{at_words(*ball)} an attacker changes the decision on {of_all(flips, count, 'inputs')}."
    )
    clean = _rows(use, victim, "clean")
    attacked = _rows(use, victim, "attacked", ball)
    if len(clean) > 1 and len({row["decision"] for row in clean}) == 1:
        yield f"Without an attack it is the same decision on all {len(clean)} inputs."
    yield (
        f"The head decides rightly on {of_all(_right(clean), len(clean), 'inputs')} without an "
        f"attack, and on {of_all(_right(attacked), len(attacked), 'under it')}."
    )
    for name in victims:
        radii = _certified(use, name)
        if radii:
            right = [radius for radius, correct in radii if correct and radius > 0]
            middle = sorted(radius if correct else 0.0 for radius, correct in radii)
            typical = middle[len(middle) // 2] if len(middle) % 2 else middle[len(middle) // 2 - 1]
            yield (
                f"Certified, {name}: {of_all(len(right), len(radii), 'inputs')} keep a right "
                f"decision of the smoothed head in some radius, the median radius is "
                f"{floor(typical)} (l2), each with confidence {use.facts['confidence']:g}."
            )
    if not any(_certified(use, name) for name in victims):
        yield "Nothing is certified: a victim with noise on its input would be."


def _table(use: UseFacts, victim: str) -> Table:
    clean = _rows(use, victim, "clean")
    n = len(clean)
    rows = [Row({"change": "none"}, {"accuracy": _share(_right(clean), n)})]
    for ball in balls_of(use, victim=victim):
        attacked = _rows(use, victim, "attacked", ball)
        kept, count = _kept(use, victim, ball)
        cells = {"kept": _share(kept, count), "accuracy": _share(_right(attacked), count)}
        columns = (("drift", "drift"), ("neighbor", "neighbor_flip"), ("tokens", "token_flips"))
        for key, column in columns:
            values = [float(row[column]) for row in attacked if row.get(column) is not None]
            if values:
                middle, error = mean_stderr(values)
                cells[key] = Cell(middle, middle - 1.96 * error, middle + 1.96 * error, len(values))
        rows.append(Row({"change": f"{ball_words(*ball)}, attacked"}, cells))
    radii = _certified(use, victim)
    if radii:
        for norm, size in balls_of(use, victim=victim):
            if norm == "l2":
                right = sum(correct and radius > size for radius, correct in radii)
                cells = {"accuracy": _share(right, len(radii))}
                rows.append(Row({"change": f"l2 {size:g}, certified"}, cells))
    return Table(f"{victim}: decisions on the code", HEADINGS, tuple(rows))


def _certified(use: UseFacts, victim: str) -> list[tuple[float, bool]]:
    """Certified radius of each input, and whether its decision is right."""
    return [
        (number(row["certified"]) or 0.0, row["decision"] == row["label"])
        for row in _rows(use, victim, "certified")
    ]


def _curves(use: UseFacts, victim: str, radii: list[tuple[float, bool]]) -> list[charts.Curve]:
    n = len(radii)
    right = sorted((radius for radius, correct in radii if correct), reverse=True)
    points = [(0.0, len(right) / n)]
    for i, radius in enumerate(sorted(right)):
        points += [(radius, (len(right) - i) / n), (radius, (len(right) - i - 1) / n)]
    clean = _rows(use, victim, "clean")
    # between two sizes the smaller one alone was attacked: steps, and no slopes
    attacked = [(0.0, _right(clean) / len(clean))]
    for norm, size in balls_of(use, victim=victim):
        if norm == "l2":
            rows = _rows(use, victim, "attacked", (norm, size))
            attacked += [(size, attacked[-1][1]), (size, _right(rows) / len(rows))]
    return [("certified", "proved", points), ("attacked", "free", attacked)]


def _share(hits: int, count: int) -> Cell:
    value = share(hits, count)
    return Cell(value.value, value.low, value.high, count)


def _how(use: UseFacts) -> Iterable[str]:
    yield (
        f"{use.facts['inputs']} inputs; the head is {use.facts.get('head', 'one of the user')}. "
        "Attacked decisions are the worst of an attack on the decision and one on the code. Shares "
        "have exact 95 % intervals over inputs."
    )
