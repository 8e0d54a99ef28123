"""Attacked scores stay within the intervals that smoothing certifies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records.judging import Case, Outcome, Subject
from robustvae.registry import register

# a deployed median of a few draws strays from the median that is certified: one in a hundred may
ALLOWED = 0.01


@register("check", "certified_scores_hold")
@final
@dataclass(frozen=True)
class CertifiedScoresHold:
    """Attacked scores stay within the intervals that were certified for changes of their size."""

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the certificate or the independence of the victim's draws is wrong, and no "
        "certified number of this report holds."
    )

    def __call__(self, case: Case) -> Outcome:
        """Judge what the profile compared."""
        facts = case.probes.get("use", {})
        count = facts.get("compared", 0)
        if not count:
            return Outcome(None, "no certified score was compared with an attack")
        outside = facts["attacked_outside_certified"]
        return Outcome(outside <= ALLOWED * count, f"{outside} of {count} outside")
