"""Whether a larger ball allows more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.audit.checks.gradient_matches_function import informative
from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "larger_radius_stronger")
@final
@dataclass(frozen=True)
class LargerRadiusStronger:
    """The first attack does not get weaker when its radius is doubled.

    Args:
        slack: Relative loss that is forgiven: searches restart at random.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "Whatever a small ball allows, a larger one does too. If the score falls, the search is "
        "lost in the larger ball."
    )

    slack: float = 0.05

    def __call__(self, case: Case) -> Outcome:
        """Compare the mean score at one and at two radii."""
        probe = case.probes.get("larger")
        if not probe:
            return Outcome(None, "not measured")
        base, double = float(probe["base"]), float(probe["double"])
        words = f"mean score {base:.3g}, {double:.3g} at twice the radius"
        if max(base, double) <= 1e-9:
            return Outcome(None, "nothing moved")
        if case.probes.get("gradient") and informative(case) is None:
            return Outcome(None, f"{words}; no gradient to be trusted")
        return Outcome(double >= base * (1 - self.slack), words)
