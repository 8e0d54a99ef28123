"""Whether the output stays within the tolerance when nothing attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "robust_without_attack")
@final
@dataclass(frozen=True)
class RobustWithoutAttack:
    """Without any change the output stays within r with probability above m on most inputs.

    Args:
        share: Of the inputs that may fail.
    """

    subject: ClassVar[Subject] = "robustness"
    meaning: ClassVar[str] = (
        "Where it does not, the margin is 0: the victim's own noise moves the output further than "
        "the question tolerates."
    )

    share: float = 0.5

    def __call__(self, case: Case) -> Outcome:
        """Count the inputs whose probability without attack is surely at most m."""
        highs = case.numbers("probability_clean_high", case.inputs())
        if not highs:
            return Outcome(None, "not measured")
        failing = sum(high <= float(case.question["m"]) for high in highs)
        return Outcome(
            failing <= self.share * len(highs),
            f"{failing} of {len(highs)} inputs not robust without attack",
        )
