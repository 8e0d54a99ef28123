"""The rows that say that something is wrong: a hit list for whoever must mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from robustvae.records import Record
from robustvae.report.reading import inconclusive
from robustvae.rounding import number


@final
@dataclass(frozen=True)
class Failure:
    """One failing row.

    Attributes:
        place: Its place among the record's rows, from 0.
        row: The row.
        reason: Why it is here, in words.
    """

    place: int
    row: dict[str, Any]
    reason: str


def failing_rows(record: Record) -> list[Failure]:
    """Rows that are broken for sure, inconclusive, or changed since; the most harmful first.

    Args:
        record: An audit.
    """
    changed = set(record.changed_rows)
    failures = []
    for place, row in enumerate(record.rows):
        reason = _reason(row, record.question.m, place in changed)
        if reason:
            failures.append(Failure(place, row, reason))
    return sorted(failures, key=lambda failure: (-_harm(failure.row), failure.place))


def _reason(row: dict[str, Any], m: float, changed: bool) -> str:
    if changed:
        return "changed since it was measured"
    if inconclusive(row):
        return f"search {row.get('status')}"
    high = number(row.get("probability_high"))
    if high is not None and high <= m:
        return "broken for sure"
    return ""


def _harm(row: dict[str, Any]) -> float:
    """Damage for each unit of size; more harm by a smaller change comes first."""
    damage, size = number(row.get("damage")), number(row.get("size"))
    return 0.0 if damage is None or not size else damage / size
