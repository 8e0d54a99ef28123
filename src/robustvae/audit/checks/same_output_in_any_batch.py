"""Whether a row depends on the other rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "same_output_in_any_batch")
@final
@dataclass(frozen=True)
class SameOutputInAnyBatch:
    """An input's output is the same alone, in a batch, and in another order.

    Args:
        slack: Difference relative to the output's length that rounding may make.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, an attacked input is judged by what stands beside it, and no statement about one "
        "input holds."
    )

    slack: float = 1e-2  # float32 sums of another order, through a search of many steps

    def __call__(self, case: Case) -> Outcome:
        """Judge the greatest relative difference between batches."""
        gap = case.probes.get("batch")
        if gap is None:
            return Outcome(None, "not judged: each row draws its own numbers")
        return Outcome(float(gap) <= self.slack, f"outputs differ by {float(gap):.2g} relatively")
