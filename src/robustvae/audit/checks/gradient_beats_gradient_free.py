"""Whether gradients find more than random squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.audit.checks.gradient_matches_function import informative
from robustvae.records import Case, Outcome
from robustvae.records.intervals import paired
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
        words, any_failure, any_judgment = [], False, False
        for ball, rows in case.balls():
            for goal in dict.fromkeys(
                row["goal"] for row in rows if row["role"] == "gradient-free"
            ):
                same = [row for row in rows if row["goal"] == goal]
                ours = case.best("score", [r for r in same if r["role"] == "plan"])
                theirs = case.best("score", [r for r in same if r["role"] == "gradient-free"])
                result = paired(ours, theirs)
                if result is None or max(result.first, result.second) <= 1e-9:
                    continue
                any_judgment = True
                behind = result.second > result.first * (1 + self.slack)
                any_failure |= behind and result.gap > 2 * result.stderr
                words.append(f"{ball}: {result.first:.3g} against {result.second:.3g}")
        if not any_judgment:
            return Outcome(None, "nothing moved, or no search without gradients ran")
        if case.probes.get("gradient") and informative(case) is None:
            return Outcome(None, f"{'; '.join(words)}; no gradient to be trusted, both count")
        return Outcome(not any_failure, "; ".join(words))
