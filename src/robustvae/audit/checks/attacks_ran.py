"""Whether the planned attacks could be run at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "attacks_ran")
@final
@dataclass(frozen=True)
class AttacksRan:
    """Every attack of the plan ran on every input."""

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "What could not be attacked was not shown to be robust. The reason stands among the "
        "stages that were left out."
    )

    def __call__(self, case: Case) -> Outcome:
        """Count the rows with a score among those that the plan asked for."""
        rows = case.roles("plan")
        ran = sum(row.get("score") is not None for row in rows)
        return Outcome(bool(rows) and ran == len(rows), f"{ran} of {len(rows)} attacks ran")
