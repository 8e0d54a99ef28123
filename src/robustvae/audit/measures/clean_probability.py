"""How likely an unattacked output stays within the tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.audit.context import Context
from robustvae.audit.measures.probability import draws_at, shares
from robustvae.records import Column
from robustvae.registry import register


@register("measure", "clean-probability")
@final
@dataclass(frozen=True)
class CleanProbability:
    """P(distance <= r) at the clean inputs, with its exact interval."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="probability_clean",
            label="probability of staying within r without attack",
            kind="share",
            per="input",
            better="higher",
        ),
        Column(
            id="probability_clean_high",
            label="its upper end",
            kind="share",
            per="input",
            reduction="none",
            rounding="up",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure the inputs."""
        # whether an input is robust without attack is decided by a quarter of the draws
        most = max(50, context.plan.draws // 4)
        counts = [most] * len(context.x)
        draws = draws_at(context, context.x, "clean probability", counts)
        value, _, high = shares(context, draws)
        return {"probability_clean": value, "probability_clean_high": high}
