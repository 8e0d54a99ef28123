"""Whether the model's own error is below the tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.intervals import mean_stderr
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "clean_error_below_tolerance")
@final
@dataclass(frozen=True)
class CleanErrorBelowTolerance:
    """The mean error of clean reconstructions is below r."""

    subject: ClassVar[Subject] = "note"
    meaning: ClassVar[str] = (
        "If not, an output that moved by r may be no worse than the model's ordinary error: read "
        "the curves at larger r."
    )

    def __call__(self, case: Case) -> Outcome:
        """Compare the mean error over the inputs with r."""
        errors = case.finite("error_clean", case.inputs())
        if not errors:
            return Outcome(None, "not measured")
        mean, _ = mean_stderr(errors)
        r = float(case.question["r"])
        return Outcome(mean <= r, f"mean error {mean:.3g}, r = {r:g}")
