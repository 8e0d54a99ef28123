"""Whether the search had converged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.intervals import paired
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "longer_search_same")
@final
@dataclass(frozen=True)
class LongerSearchSame:
    """A longer run of the first attack finds hardly more.

    Args:
        gain: Relative gain of the longer run that is forgiven.
    """

    # the longer run is in the headline already, so that its gain accuses nobody
    subject: ClassVar[Subject] = "note"
    meaning: ClassVar[str] = (
        "If it does, the search had not converged: the headline has the longer run, and a plan "
        "with more steps may find more still."
    )

    gain: float = 0.1

    def __call__(self, case: Case) -> Outcome:
        """Compare scores of the longer run with the plan's, input by input."""
        rows = case.roles("longer")
        if not rows:
            return Outcome(None, "no longer run was made")
        first = rows[0]
        same = [
            row
            for row in case.roles("plan", "explored")
            if all(row[key] == first[key] for key in ("goal", "norm", "radius"))
        ]
        result = paired(case.best("score", same), case.best("score", rows))
        if result is None or max(result.first, result.second) <= 1e-9:
            return Outcome(None, "nothing moved")
        words = f"mean score {result.first:.3g}, {result.second:.3g} by the longer run"
        return Outcome(result.second <= result.first * (1 + self.gain), words)
