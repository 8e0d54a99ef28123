"""Whether the attacker saw a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "gradient_seen")
@final
@dataclass(frozen=True)
class GradientSeen:
    """The attacks that need a gradient met one other than zero on nearly every input.

    Args:
        tolerated: Share of rows that may have met none.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "Where something detaches, saturates or rounds, a gradient attack learns nothing: its row "
        "is inconclusive, which is not the same as robust."
    )

    tolerated: float = 0.1  # a few dead inputs of an honest network accuse nobody

    def __call__(self, case: Case) -> Outcome:
        """Count the rows of gradient attacks that met no gradient, or mostly zeros."""
        rows = [row for row in case.roles("plan") if row.get("zero_gradients") is not None]
        blind = sum(row["status"] != "ok" or float(row["zero_gradients"]) > 0.5 for row in rows)
        value = f"{blind} of {len(rows)} attacks without a gradient"
        flat = sum(point.get("plateau", False) for point in case.probes.get("gradient") or [])
        if flat:
            value += f"; {flat} points on plateaus, where function and gradient are both flat"
        return Outcome(blind <= self.tolerated * len(rows) if rows else None, value)
