"""Whether the output stays within the tolerance when nothing attacks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from robustvae.records import Case, Outcome
from robustvae.records.judging import Subject
from robustvae.registry import register


@register("check", "robust_without_attack")
@final
@dataclass(frozen=True)
class RobustWithoutAttack:
    """Without any change the output stays within r with probability above m on most inputs.

    Args:
        share: Of the inputs that may fail.
    """

    subject: ClassVar[Subject] = "robustness"
    meaning: ClassVar[str] = (
        "Where it does not, the margin is 0: the victim's own noise moves the output further than "
        "the question tolerates."
    )

    share: float = 0.5

    def __call__(self, case: Case) -> Outcome:
        """Count the inputs whose output moves too far by itself.

        An undefended model by the probability that was measured; a defended one by how far two of
        its own outputs lie apart, since its distance from the undefended output is its price.
        """
        rows, r = case.inputs(), float(case.question["r"])
        if case.defended:
            spreads = case.numbers("own_spread", rows)
            far = [spread > _TWO_DRAWS * r for spread in spreads]
        else:
            highs = case.numbers("probability_clean_high", rows)
            far = [high <= float(case.question["m"]) for high in highs]
        if not far:
            return Outcome(None, "not measured")
        failing = sum(far)
        return Outcome(
            failing <= self.share * len(far),
            f"{failing} of {len(far)} inputs not robust without attack",
        )


_TWO_DRAWS = math.sqrt(2)  # two draws lie further apart than each from the center by this much
