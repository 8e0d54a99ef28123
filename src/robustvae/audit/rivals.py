"""Attacks of the plan against rivals that should not be stronger."""

from __future__ import annotations

from robustvae.audit.checks.gradient_matches_function import informative
from robustvae.records import Case, Outcome
from robustvae.records.intervals import paired

_NOTHING = 1e-9  # scores below: nothing moved, and there is nothing to compare


def compared(case: Case, role: str, slack: float) -> Outcome:
    """Whether the plan's attacks are as strong as those of a role, input by input.

    Scores of the same goal in the same ball are compared. The rival must lead by more than its
    slack and by more than two standard errors before it counts.

    Args:
        case: The evidence.
        role: The rivals' role, such as "transfer".
        slack: Relative lead of the rivals that is forgiven.
    """
    words, any_failure, any_judgment = [], False, False
    for ball, rows in case.balls():
        for goal in dict.fromkeys(row["goal"] for row in rows if row["role"] == role):
            same = [row for row in rows if row["goal"] == goal]
            ours = case.best("score", [row for row in same if row["role"] == "plan"])
            theirs = case.best("score", [row for row in same if row["role"] == role])
            result = paired(ours, theirs)
            if result is None or max(result.first, result.second) <= _NOTHING:
                continue
            any_judgment = True
            behind = result.second > result.first * (1 + slack)
            any_failure |= behind and result.gap > 2 * result.stderr
            words.append(f"{ball}: {result.first:.3g} against {result.second:.3g}")
    if not any_judgment:
        return Outcome(None, "nothing moved")
    if case.probes.get("gradient") and informative(case) is None:
        return Outcome(None, f"{'; '.join(words)}; no gradient to be trusted, both count")
    return Outcome(not any_failure, "; ".join(words))
