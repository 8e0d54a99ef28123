"""Whether the attack that knows the defense is the stronger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.audit.rivals import compared
from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "adaptive_at_least_transfer")
@final
@dataclass(frozen=True)
class AdaptiveAtLeastTransfer:
    """The attack that knows the defense is at least as strong as one made without it.

    Args:
        slack: Relative lead of the transferred attack that is forgiven.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the attack through the defense was blind: its gradients are masked or too noisy. "
        "The stronger result is in the headline."
    )

    slack: float = 0.1

    def __call__(self, case: Case) -> Outcome:
        """Compare scores of the same goal in the same ball, input by input."""
        if not case.roles("transfer"):
            return Outcome(None, "no defense to transfer to")
        return compared(case, ("transfer",), self.slack)
