"""Whether the attack that knows the defense is the stronger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.audit.checks.gradient_matches_function import informative
from robustvae.records import Case, Outcome
from robustvae.records.intervals import paired
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
        words, any_failure, any_judgment = [], False, False
        for ball, rows in case.balls():
            for goal in dict.fromkeys(row["goal"] for row in rows if row["role"] == "transfer"):
                same = [row for row in rows if row["goal"] == goal]
                ours = case.best("score", [r for r in same if r["role"] == "plan"])
                theirs = case.best("score", [r for r in same if r["role"] == "transfer"])
                result = paired(ours, theirs)
                if result is None or max(result.first, result.second) <= 1e-9:
                    continue
                any_judgment = True
                behind = result.second > result.first * (1 + self.slack)
                any_failure |= behind and result.gap > 2 * result.stderr
                words.append(f"{ball}: {result.first:.3g} against {result.second:.3g}")
        if not any_judgment:
            return Outcome(None, "nothing moved")
        if case.probes.get("gradient") and informative(case) is None:
            return Outcome(None, f"{'; '.join(words)}; no gradient to be trusted, both count")
        return Outcome(not any_failure, "; ".join(words))
