"""Whether the victim is a function of its input and its generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "same_output_twice")
@final
@dataclass(frozen=True)
class SameOutputTwice:
    """The same input and the same generator give the same output.

    Args:
        slack: Difference relative to the output's length that rounding may make.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the victim draws numbers that nobody gave it or remembers earlier calls, and "
        "attacks and probabilities chase noise."
    )

    slack: float = 1e-4

    def __call__(self, case: Case) -> Outcome:
        """Judge the greatest relative difference of repeated calls."""
        gap = case.probes.get("repeat")
        if gap is None:
            return Outcome(None, "not measured")
        return Outcome(float(gap) <= self.slack, f"outputs differ by {float(gap):.2g} relatively")
