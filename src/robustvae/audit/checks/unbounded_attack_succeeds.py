"""Whether an attack without a bound gets anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.audit.checks.gradient_matches_function import informative
from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "unbounded_attack_succeeds")
@final
@dataclass(frozen=True)
class UnboundedAttackSucceeds:
    """With the whole input range allowed, an attack does nearly what exchanging the input does.

    Args:
        share: Of the exchange's score that the attack must reach. A search of a few steps does not
            always cross the whole range.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = "If not, the search cannot see, whatever the radius."

    share: float = 0.6

    def __call__(self, case: Case) -> Outcome:
        """Compare the mean scores."""
        probe = case.probes.get("unbounded")
        if not probe:
            return Outcome(None, "not measured")
        free_attack, exchange = float(probe["whole"]), float(probe["swapped"])
        words = f"mean score {free_attack:.3g}; another input in its place {exchange:.3g}"
        if max(free_attack, exchange) <= 1e-9:
            return Outcome(None, "nothing moved")
        if case.probes.get("gradient") and informative(case) is None:
            return Outcome(None, f"{words}; no gradient to be trusted")
        return Outcome(free_attack >= self.share * exchange, words)
