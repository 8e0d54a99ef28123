"""Whether the output depends on the input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "input_matters")
@final
@dataclass(frozen=True)
class InputMatters:
    """What is sampled is nearer to its own input than to another one.

    Args:
        share: Of the mean distance to another input that the error must stay below.
    """

    subject: ClassVar[Subject] = "usefulness"
    meaning: ClassVar[str] = (
        "If not, the output hardly depends on the input: exchanging the input changes nothing."
    )

    share: float = 0.95

    def __call__(self, case: Case) -> Outcome:
        """Compare the mean distances over the inputs."""
        rows = case.inputs()
        errors, other = case.numbers("error_sampled", rows), case.numbers("error_other", rows)
        if not errors or not other:
            return Outcome(None, "not measured")
        ours, theirs = math.fsum(errors) / len(errors), math.fsum(other) / len(other)
        return Outcome(
            ours < self.share * theirs,
            f"mean distance to the own input {ours:.3g}, to another {theirs:.3g}",
        )
