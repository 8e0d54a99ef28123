"""How likely an attacked output stays within the tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from robustvae.audit.context import Context, distance, nature_of
from robustvae.records import Column
from robustvae.registry import register
from robustvae.robustness import robustness_probability
from robustvae.seeding import RowGenerator


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
        """Measure one attack, with all draws where it is the worst of the headline's ball."""
        few = max(_LEAST, context.plan.draws // _FEWER)
        draws = torch.where(_is_headline(context), context.plan.draws, few).tolist()
        value, low, high = probabilities(context, context.x_adv, "probability", draws)
        return {"probability": value, "probability_low": low, "probability_high": high}


# Draws are most of an audit's cost, and the headline reads one attack an input: the others' shares
# stand beside it with wider intervals, which say how many draws they rest on.
_FEWER, _LEAST = 10, 50


def _is_headline(context: Context) -> Tensor:
    """Whether the attack is the worst of the first ball on each input, (B,) bool."""
    everyone = torch.ones(len(context.x), dtype=torch.bool)
    if not context.attacks or context.attacked is None:
        return everyone
    first = context.plan.balls[0]
    if context.attacked.plan.ball != first:
        return ~everyone
    rivals = [one for one in context.attacks if one.plan.ball == first]
    damage = torch.stack(
        [
            distance(context.about(one).attacked_output, context.output).nan_to_num(-1.0)
            for one in rivals
        ]
    )
    names = [one.id for one in rivals]
    return damage.argmax(0).cpu() == names.index(context.attacked.id)


def probabilities(
    context: Context, x_adv: Tensor, purpose: str, draws: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The share of draws within r at each of `x_adv`, with its interval, each (B,).

    Args:
        context: The victim and its inputs.
        x_adv: Where, (B, ...).
        purpose: Of the draws.
        draws: How many, for each input.
    """
    question, plan = context.question, context.plan
    # a victim without randomness answers the same in every draw of a displacement that has none
    still = context.defended and not context.random
    counts = [10 if still else count for count in draws]
    by_row = nature_of(context.victim, context.x[:1]).by_row
    streams = context.generators(purpose)
    ends = [torch.full((len(x_adv),), torch.nan, dtype=torch.float64) for _ in range(3)]
    for count in dict.fromkeys(counts):
        rows = [row for row, own in enumerate(counts) if own == count]
        # all inputs in one batch, each by its own stream, where the victim draws row by row
        for part in [rows] if by_row else [[row] for row in rows]:
            estimate = robustness_probability(
                context.victim,
                context.x[part],
                x_adv[part],
                question.r,
                question.displacement,  # type: ignore[arg-type]
                center=question.center,  # type: ignore[arg-type]
                draws=count,
                confidence=plan.confidence,
                generator=RowGenerator([streams[row] for row in part])
                if by_row
                else streams[part[0]],
            )
            # certain where it is still, not estimated: the interval is the point
            low, high = (estimate.value,) * 2 if still else (estimate.low, estimate.high)
            for end, values in zip(ends, (estimate.value, low, high), strict=True):
                end[part] = torch.as_tensor(values, dtype=torch.float64).cpu()
    return ends[0], ends[1], ends[2]
