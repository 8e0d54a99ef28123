"""Whether outputs stay finite beside the audited inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "finite_everywhere")
@final
@dataclass(frozen=True)
class FiniteEverywhere:
    """Finite inputs beside the audited ones, shifted, noised or never seen, give finite outputs."""

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the victim fails where it was not shown, and attacks that go there are lost."
    )

    def __call__(self, case: Case) -> Outcome:
        """Count the outputs that are finite."""
        probe = case.probes.get("finite")
        if not probe:
            return Outcome(None, "not measured")
        good, count = int(probe["finite"]), int(probe["count"])
        return Outcome(good == count, f"{good} of {count} outputs finite")
