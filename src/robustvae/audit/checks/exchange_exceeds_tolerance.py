"""Whether the tolerance is below what another input does."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "exchange_exceeds_tolerance")
@final
@dataclass(frozen=True)
class ExchangeExceedsTolerance:
    """Putting another input in its place moves the output by more than r."""

    subject: ClassVar[Subject] = "usefulness"
    meaning: ClassVar[str] = (
        "If not, the model's outputs for different inputs are within r of each other, and every "
        "margin is a statement about nothing."
    )

    def __call__(self, case: Case) -> Outcome:
        """Compare the median distance of an exchange with r.

        A detector may give all normal inputs one output, and a head may read codes that few
        outputs show: where a profile says that something else decides, nothing is judged here.
        """
        if decides := case.probes.get("decides_by"):
            return Outcome(None, f"{decides} decides, and not the output")
        exchange = case.finite("exchange", case.inputs())
        if not exchange:
            return Outcome(None, "not measured")
        middle, r = statistics.median(exchange), float(case.question["r"])
        return Outcome(middle > r, f"median distance {middle:.3g}, r = {r:g}")
