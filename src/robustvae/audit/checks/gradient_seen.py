"""Whether the attacker saw a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


def rests_on_plateaus(points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a third of the climbs ended where the gradient is next to none and steps move far.

    Of smooth models, and of chaotic ones, none does.
    """
    ends = [bool(point.get("vanished")) for point in points if point.get("end")]
    return 3 * sum(ends) > len(ends)


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
        points = case.probes.get("gradient") or []
        flat = sum(point.get("plateau", False) for point in points)
        if flat:
            value += f"; {flat} points on plateaus, where function and gradient are both flat"
        if rests_on_plateaus(points):
            lost = sum(bool(point.get("end") and point.get("vanished")) for point in points)
            value += f"; {lost} ended on plateaus: next to no gradient, and larger steps move far"
            return Outcome(False, value)
        return Outcome(blind <= self.tolerated * len(rows) if rows else None, value)
