"""Whether gradients find more than random squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.audit.rivals import compared
from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "gradient_beats_gradient_free")
@final
@dataclass(frozen=True)
class GradientBeatsGradientFree:
    """Attacks by gradient find at least as much as a search without one, with the same queries.

    Args:
        slack: Relative lead of the other search that is forgiven.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the gradients are masked, the function has plateaus, or the search is broken. "
        "The stronger result is in the headline; an attack stronger still may be missing."
    )

    slack: float = 0.05

    def __call__(self, case: Case) -> Outcome:
        """Compare scores of the same goal in the same ball, input by input."""
        if not case.roles("gradient-free"):
            return Outcome(None, "no search without gradients ran")
        return compared(case, "gradient-free", self.slack)
