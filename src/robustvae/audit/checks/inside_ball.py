"""Whether the attacks kept to their balls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "inside_ball")
@final
@dataclass(frozen=True)
class InsideBall:
    """Every attacked input lies in its ball and in the input range, to 1e-6."""

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the attack went further than it was allowed to, and its numbers overstate the "
        "weakness."
    )

    def __call__(self, case: Case) -> Outcome:
        """Judge every row by its size against its radius, and by what was seen of the range."""
        rows = [row for row in case.rows if row.get("inside") is not None]
        good = sum(
            bool(row["inside"]) and float(row["size"]) <= float(row["radius"]) + 1e-6
            for row in rows
        )
        return Outcome(good == len(rows) if rows else None, f"{good} of {len(rows)} rows inside")
