"""Whether the gradient is the function's."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.records.verdict import NOT_INFORMATIVE
from robustvae.registry import register


def informative(case: Case) -> list[float] | None:
    """Agreement of gradient and function at each point where differences can be trusted.

    None where they cannot be trusted at most points: in a chaotic function, such as a sampler with
    an accept step, no finite difference says what the gradient should be.
    """
    points = case.probes.get("gradient") or []
    agreements = [float(point["agreement"]) for point in points if point.get("trusted")]
    return agreements if points and 2 * len(agreements) >= len(points) else None


@register("check", "gradient_matches_function")
@final
@dataclass(frozen=True)
class GradientMatchesFunction:
    """The gradient agrees with central differences of the score, up to its length.

    Args:
        least: Cosine between the differences and what the gradient predicts for them that at least
            half of the points must reach.
    """

    subject: ClassVar[Subject] = "evidence"
    meaning: ClassVar[str] = (
        "If not, the attacks climbed another function than the one they were judged by: the "
        "gradient is masked, blurred, shuffled or of something else."
    )

    # honest float32 networks reach 0.98 and more; block means that hide a fifth of the damage 0.6
    least: float = 0.9

    def __call__(self, case: Case) -> Outcome:
        """Judge the median agreement over the points whose two step sizes tell the same."""
        points = case.probes.get("gradient") or []
        if not points:
            return Outcome(None, "not measured")
        agreements = informative(case)
        hidden = sum(point.get("hidden", False) for point in points)
        if agreements is None and 2 * hidden > len(points):
            value = f"next to none at {hidden} of {len(points)} points, where the function moves"
            return Outcome(False, value)
        if agreements is None:
            return Outcome(
                None, f"{NOT_INFORMATIVE}: differences of two step sizes contradict each other"
            )
        middle = statistics.median(agreements)
        low = sum(value < self.least for value in agreements)
        value = f"median agreement {middle:.2f} at {len(agreements)} of {len(points)} points"
        return Outcome(2 * low < len(agreements), value)
