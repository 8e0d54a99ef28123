"""Whether what the model produces is better than a constant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "samples_beat_constant")
@final
@dataclass(frozen=True)
class SamplesBeatConstant:
    """What is sampled is nearer to its input than the best constant output is.

    Args:
        share: Of the constant's mean error that the model's must stay below.
    """

    subject: ClassVar[Subject] = "usefulness"
    meaning: ClassVar[str] = (
        "If not, the model reconstructs nothing, and whatever robustness it has is that of a "
        "constant."
    )

    share: float = 0.95

    def __call__(self, case: Case) -> Outcome:
        """Compare the mean errors over the inputs."""
        rows = case.inputs()
        errors = case.numbers("error_sampled", rows)
        constant = case.numbers("error_constant", rows)
        if not errors and rows and all("error_sampled" in row for row in rows):
            return Outcome(False, "what is sampled could not be measured")
        if not errors or not constant:
            return Outcome(None, "not measured")
        if len(rows) == 1:
            return Outcome(None, "the best constant for a single input is that input")
        ours, theirs = math.fsum(errors) / len(errors), math.fsum(constant) / len(constant)
        return Outcome(
            ours < self.share * theirs,
            f"mean error of what is sampled {ours:.3g}, of the best constant {theirs:.3g}",
        )
