"""Whether a defense saves more than it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "defense_worth_its_price")
@final
@dataclass(frozen=True)
class DefenseWorthItsPrice:
    """The defense saves more of the attack's effect than it moves clean outputs."""

    # it judges the defense, not the evidence
    subject: ClassVar[Subject] = "note"
    meaning: ClassVar[str] = (
        "If not, every clean input pays more than an attacked one gains: the undefended model is "
        "the better choice at this size of attack."
    )

    def __call__(self, case: Case) -> Outcome:
        """Compare what the worst attack gains less of with the price without attack."""
        probe = case.probes.get("three")
        if not case.defended or not probe or probe.get("undefended") is None:
            return Outcome(None, "no defense")
        benefit = float(probe["undefended"]) - float(probe["effect"])
        price = float(probe["price"])
        return Outcome(
            benefit > price, f"saves {benefit:.3g} under attack, costs {price:.3g} without one"
        )
