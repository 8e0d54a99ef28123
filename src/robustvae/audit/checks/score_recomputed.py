"""Whether scores can be computed again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "score_recomputed")
@final
@dataclass(frozen=True)
class ScoreRecomputed:
    """The damage of stored inputs, computed again in one batch, is what the rows say.

    Args:
        slack: Relative difference that rounding may make.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the output changes from call to call although its generator does not, or it "
        "depends on what else is in the batch: no number of this audit can be reproduced."
    )

    slack: float = 0.05

    def __call__(self, case: Case) -> Outcome:
        """Judge the greatest relative difference."""
        gap = case.probes.get("again")
        if gap is None:
            return Outcome(None, "not measured")
        return Outcome(float(gap) <= self.slack, f"greatest relative difference {float(gap):.2g}")
