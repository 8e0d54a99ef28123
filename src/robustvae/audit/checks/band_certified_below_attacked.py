"""Whether certificates and attacks agree along the whole band, not at r alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.along import ATTACKED, CERTIFIED
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "band_certified_below_attacked")
@final
@dataclass(frozen=True)
class BandCertifiedBelowAttacked:
    """No change smaller than a certified radius breaks the tolerance it was certified for.

    Args:
        chance: Share of the inputs on which chance may say otherwise, where outputs are random:
            each tolerance under attack is a lower bound with 95 % confidence.
        slack: Relative difference that rounding may make.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If one does, a certificate along r is wrong, whatever holds at r itself, or the record "
        "was changed."
    )

    chance: float = 0.05
    slack: float = 1e-6

    def __call__(self, case: Case) -> Outcome:
        """Compare every certified radius with every tolerance seen broken, input by input."""
        comparisons, violations = 0, 0
        rows: dict[Any, list[Mapping[str, Any]]] = {}
        for row in case.rows:
            rows.setdefault(row.get("input"), []).append(row)
        for group in rows.values():
            certified = list(self._certified(case, group[0]))
            attacked = list(self._attacked(case, group))
            if not certified or not attacked:
                continue
            comparisons += 1
            violations += any(
                tolerance > r * (1 + self.slack) and size < radius * (1 - self.slack)
                for radius, r in certified
                for size, tolerance in attacked
            )
        if not comparisons:
            return Outcome(None, "nothing certified along r was attacked")
        limit = math.floor(self.chance * comparisons) if case.random else 0
        words = f"{violations} of {comparisons} inputs violated"
        return Outcome(violations <= limit, words)

    def _certified(self, case: Case, row: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
        """Certified radii and the tolerances they are for."""
        for column, times in CERTIFIED.items():
            radius = row.get(column)
            if radius is not None and float(radius) > 0:
                yield float(radius), times * float(case.question["r"])

    def _attacked(self, case: Case, rows: list[Mapping[str, Any]]) -> Iterator[tuple[float, float]]:
        """Sizes of changes in the question's norm and the tolerances they were seen to break."""
        for row in rows:
            size = row.get("size")
            if size is None or row.get("norm") != case.question["norm"]:
                continue
            for column, share in ATTACKED.items():
                tolerance = row.get(column)
                if tolerance is not None:
                    yield share * float(size), float(tolerance)
