"""Attacks of the plan against rivals that should not be stronger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from robustvae.audit.checks.gradient_matches_function import informative
from robustvae.records import Case, Outcome
from robustvae.records.intervals import paired

_NOTHING = 1e-9  # scores below: nothing moved, and there is nothing to compare


def compared(
    case: Case,
    roles: Sequence[str],
    slack: float,
    *,
    further: Sequence[str] = (),
) -> Outcome:
    """Whether the plan's attacks are as strong as those of some roles, input by input.

    Scores of the same goal in the same ball are compared. The rival must lead by more than its
    slack and by more than two standard errors before it counts. Of a victim that draws, what
    attacks do under fresh numbers is compared too: a score belongs to the numbers that its attack
    climbed on.

    Args:
        case: The evidence.
        roles: The rivals' roles, such as "transfer".
        slack: Relative lead of the rivals that is forgiven.
        further: Roles of climbs that went on from where the rivals ended. A lead is forgiven where
            these lead by as much again, by more than two standard errors, and by more than the
            slack on most of the inputs on which the rivals led: then gradients do see the way, and
            random starts were the wrong place to ask. What climbs gain on inputs where gradients
            led anyway excuses nothing: a victim may hide the slope of some inputs alone.
    """
    words, any_failure, any_judgment = [], False, False
    for ball, rows in case.balls():
        for goal in dict.fromkeys(row["goal"] for row in rows if row["role"] in roles):
            same = [row for row in rows if row["goal"] == goal]
            for column in ("score", "damage") if case.random else ("score",):
                ours, theirs, climbs = (
                    case.best(column, [row for row in same if row["role"] in some])
                    for some in (("plan",), roles, further)
                )
                result = paired(ours, theirs)
                if result is None or max(result.first, result.second) <= _NOTHING:
                    continue
                any_judgment = True
                fresh = " under fresh numbers" if column == "damage" else ""
                said = f"{ball}: {result.first:.3g} against {result.second:.3g}{fresh}"
                behind = result.second > result.first * (1 + slack)
                if behind and result.gap > 2 * result.stderr:
                    beyond = paired(theirs, climbs)
                    lead = max(result.gap, slack * result.second)
                    leads = beyond is not None and beyond.gap > max(lead, 2 * beyond.stderr)
                    if beyond is not None and leads and _extended(ours, theirs, climbs, slack):
                        said += f", and {beyond.second:.3g} by gradients from there"
                    else:
                        any_failure = True
                words.append(said)
    if not any_judgment:
        return Outcome(None, "nothing moved")
    # in a chain that draws, gradients may be of no use to anybody, and nobody hides them
    if case.random and case.probes.get("gradient") and informative(case) is None:
        return Outcome(None, f"{'; '.join(words)}; no gradient to be trusted, both count")
    return Outcome(not any_failure, "; ".join(words))


def _extended(
    ours: Mapping[Any, float],
    theirs: Mapping[Any, float],
    climbs: Mapping[Any, float],
    slack: float,
) -> bool:
    """Whether climbs lead on most of the inputs on which rivals did."""
    behind = [
        name
        for name, rival in theirs.items()
        if rival > ours.get(name, math.inf) * (1 + slack) and rival > _NOTHING
    ]
    gains = [climbs.get(name, -math.inf) > theirs[name] * (1 + slack) for name in behind]
    return 2 * sum(gains) > len(gains)
