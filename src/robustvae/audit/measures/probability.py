"""How likely an attacked output stays within the tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from robustvae.audit.context import Context, distance, nature_of
from robustvae.metrics import clopper_pearson
from robustvae.records import Column
from robustvae.registry import register
from robustvae.robustness.displacement import Ruler
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
        value, low, high = shares(context, attacked_distances(context))
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


def attacked_distances(context: Context) -> list[Tensor]:
    """Draws of ||Delta|| at each attacked input, made once for all measures that read them.

    As many as the plan has where the attack is the worst of the headline's ball, and fewer
    elsewhere; one where nothing is random.
    """
    assert context.attacked is not None, "a measure of attacks"

    def make() -> list[Tensor]:
        few = max(_LEAST, context.plan.draws // _FEWER)
        draws = torch.where(_is_headline(context), context.plan.draws, few).tolist()
        return distances_at(context, context.x_adv, "probability", draws)

    result: list[Tensor] = context.once(("distances", context.attacked.id), make)
    return result


def distances_at(context: Context, y: Tensor, purpose: str, draws: Sequence[int]) -> list[Tensor]:
    """Draws of ||Delta|| at each changed input, (draws,) of each; one where nothing is random.

    Args:
        context: The victim and its inputs.
        y: Changed inputs, (B, ...).
        purpose: Of the draws.
        draws: How many, for each input.
    """
    question = context.question
    # a victim without randomness answers the same in every draw of a displacement that has none
    counts = [1] * len(y) if context.defended and not context.random else list(draws)
    by_row = nature_of(context.victim, context.x[:1]).by_row
    streams = context.generators(purpose)
    result = [torch.empty(0)] * len(y)
    for count in dict.fromkeys(counts):
        rows = [row for row, own in enumerate(counts) if own == count]
        # all inputs in one batch, each by its own stream, where the victim draws row by row
        for part in [rows] if by_row else [[row] for row in rows]:
            local = RowGenerator([streams[row] for row in part])
            # an own center spends its draws first, so that none serves for both
            ruler = Ruler(
                context.victim,
                context.x[part],
                question.displacement,
                question.center,
                generator=local,
            )
            everyone = torch.arange(len(part), device=y.device)
            for row, column in zip(
                part, ruler.fresh(y[part], everyone, count, local).T, strict=True
            ):
                result[row] = column.double().cpu()
    return result


def shares(context: Context, distances: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The share of each input's draws that lie within r, with its interval, each (B,)."""
    ends = torch.empty(3, len(distances), dtype=torch.float64)
    for row, column in enumerate(distances):
        within, count = int((column <= context.question.r).sum()), len(column)
        if count == 1:  # certain where nothing is random, not estimated: the interval is the point
            ends[:, row] = float(within)
            continue
        low, high = clopper_pearson(within, count, context.plan.confidence)
        ends[:, row] = torch.tensor([within / count, float(low), float(high)])
    return ends[0], ends[1], ends[2]
