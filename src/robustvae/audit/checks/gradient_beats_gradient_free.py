"""Whether gradients find more than random squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.audit.rivals import compared
from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register

_FURTHER = {"gradient-free": ("explored",)}  # climbs that begin where a rival ended


@register("check", "gradient_beats_gradient_free")
@final
@dataclass(frozen=True)
class GradientBeatsGradientFree:
    """Attacks by gradient find at least as much as searches without one, or go on from there.

    Args:
        slack: Relative lead of random squares that is forgiven.
        slack_differences: The same of an ascent along differences of the score, which is made
            where the gradient is in doubt: it sees over steps that an honest rounding has.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the gradients are masked, the function has plateaus, or the search is broken. "
        "The stronger result is in the headline; an attack stronger still may be missing."
    )

    slack: float = 0.05
    slack_differences: float = 0.1

    def __call__(self, case: Case) -> Outcome:
        """Compare scores of the same goal in the same ball, input by input."""
        rivals = {"gradient-free": self.slack, "differences": self.slack_differences}
        outcomes = [
            compared(case, (role,), slack, further=_FURTHER.get(role, ()))
            for role, slack in rivals.items()
            if case.roles(role)
        ]
        if not outcomes:
            return Outcome(None, "no search without gradients ran")
        answers = [outcome.passed for outcome in outcomes if outcome.passed is not None]
        words = "; slopes by differences, ".join(outcome.value for outcome in outcomes)
        return Outcome(all(answers) if answers else None, words)
