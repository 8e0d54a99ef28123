"""Whether the diagnosis of the victim found a fault."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "diagnosis_passed")
@final
@dataclass(frozen=True)
class DiagnosisPassed:
    """`rv.check` finds no fault of range, mode, randomness, batch, spread or gradient."""

    # straight-through gradients are named there too, and are honest: attacks judge them by damage
    subject: ClassVar[Subject] = "note"
    meaning: ClassVar[str] = "`robustvae check` says what each fault is and how it is mended."

    def __call__(self, case: Case) -> Outcome:
        """Name the items that failed, with their remedies."""
        items = case.probes.get("diagnosis")
        if not items:
            return Outcome(None, "not made")
        failures = [item for item in items if item["passed"] is False]
        words = [f"{item['name']}: {item['message']}; {item['remedy']}" for item in failures]
        return Outcome(not failures, "; ".join(words)[:400] or f"{len(items)} items passed")
