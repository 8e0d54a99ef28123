"""How likely an attacked output stays within the tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from robustvae.audit.context import Context
from robustvae.records import Column
from robustvae.registry import register
from robustvae.robustness import robustness_probability


@register("measure", "probability")
@final
@dataclass(frozen=True)
class Probability:
    """P(distance <= r) at the attacked inputs, with its exact interval."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="probability",
            label="probability of staying within r under attack",
            kind="share",
            better="higher",
            headline="Probability of staying within r under the worst attack",
        ),
        Column(
            id="probability_low",
            label="its lower end",
            kind="share",
            reduction="none",
            rounding="down",
        ),
        Column(
            id="probability_high",
            label="its upper end",
            kind="share",
            reduction="none",
            rounding="up",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        value, low, high = probabilities(context, context.x_adv, "probability")
        return {"probability": value, "probability_low": low, "probability_high": high}


def probabilities(context: Context, x_adv: Tensor, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
    """The share of draws within r at each of `x_adv`, with its interval, each (B,)."""
    question, plan = context.question, context.plan
    # a victim without randomness answers the same in every draw of a displacement that has none
    still = context.defended and not context.random
    draws = 10 if still else plan.draws

    def one(row: slice, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        estimate = robustness_probability(
            context.victim,
            context.x[row],
            x_adv[row],
            question.r,
            question.displacement,  # type: ignore[arg-type]
            draws=draws,
            confidence=plan.confidence,
            generator=generator,
        )
        if still:  # certain, not estimated: the interval is the point
            return estimate.value, estimate.value, estimate.value
        return estimate.value, estimate.low, estimate.high

    parts = context.each(purpose, one)
    value, low, high = (torch.cat(part) for part in zip(*parts, strict=True))
    return value, low, high
