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
        value, low, high = shares(context, attacked_draws(context))
        return {"probability": value, "probability_low": low, "probability_high": high}


# Draws are most of an audit's cost, and the headline reads one attack an input: the others' shares
# stand beside it with wider intervals, which say how many draws they rest on.
_FEWER, _LEAST = 10, 50
_MANY = 200  # draws that are worth a look after a quarter of them
_FIRST_LOOK = 0.2  # share of the risk that it spends


def rival_draws(draws: int) -> int:
    """Draws at an attacked input that is not the headline's, of a plan with so many."""
    return max(_LEAST, draws // _FEWER)


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


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of ||Delta|| at changed inputs.

    Attributes:
        distances: Of each input, (draws,), as many as it took; one where nothing is random.
        risks: Of each input, what its interval may spend: draws that were looked at once before
            have spent a part.
    """

    distances: tuple[Tensor, ...]
    risks: tuple[float, ...]


def attacked_draws(context: Context) -> Draws:
    """Draws at the attacked inputs, made once for all measures that read them.

    As many as the plan has where the attack is the worst of the headline's ball, and fewer
    elsewhere.
    """
    assert context.attacked is not None, "a measure of attacks"

    def make() -> Draws:
        most = context.plan.draws
        counts = torch.where(_is_headline(context), most, rival_draws(most)).tolist()
        return draws_at(context, context.x_adv, "probability", counts)

    result: Draws = context.once(("draws", context.attacked.id), make)
    return result


def draws_at(context: Context, y: Tensor, purpose: str, counts: Sequence[int]) -> Draws:
    """Draws of ||Delta|| at changed inputs.

    Where a quarter of many draws lie all on one side of r, the rest would only say so again: they
    are left out. Both looks together keep the plan's confidence, the first for a fifth of its risk.

    Args:
        context: The victim and its inputs.
        y: Changed inputs, (B, ...).
        purpose: Of the draws.
        counts: How many at the most, for each input.
    """
    risk, question = 1 - context.plan.confidence, context.question
    by_row = nature_of(context.victim, context.x[:1]).by_row
    streams = context.generators(purpose)
    distances = [torch.empty(0, dtype=torch.float64)] * len(y)
    risks = [risk] * len(y)

    def look(rows: Sequence[int], count: int) -> None:
        """Add draws of some inputs, each by its own stream."""
        for part in [rows] if by_row else [[row] for row in rows]:
            local = RowGenerator([streams[row] for row in part])
            ruler = context.once(("ruler", *part), lambda: _ruler(context, part))  # noqa: B023
            everyone = torch.arange(len(part), device=y.device)
            fresh = ruler.fresh(y[part], everyone, count, local).double().cpu()
            for row, column in zip(part, fresh.T, strict=True):
                distances[row] = torch.cat([distances[row], column])

    # a victim without randomness answers the same in every draw of a displacement that has none
    still = context.defended and not context.random
    for count in dict.fromkeys(counts):
        rows = [row for row, own in enumerate(counts) if own == count]
        if still or count < _MANY:
            look(rows, 1 if still else count)
            continue
        look(rows, count // 4)
        share = [float((distances[row] <= question.r).double().mean()) for row in rows]
        further = [row for row, value in zip(rows, share, strict=True) if 0 < value < 1]
        for row in rows:
            risks[row] = risk * (1 - _FIRST_LOOK if row in further else _FIRST_LOOK)
        if further:
            look(further, count - count // 4)
    return Draws(tuple(distances), tuple(risks))


def _ruler(context: Context, rows: Sequence[int]) -> Ruler:
    """What measures some of the inputs; an own center's draws serve for nothing else."""
    question = context.question
    streams = context.generators("center")
    return Ruler(
        context.victim,
        context.x[list(rows)],
        question.displacement,
        question.center,
        generator=RowGenerator([streams[row] for row in rows]),
    )


def shares(context: Context, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """The share of each input's draws that lie within r, with its interval, each (B,)."""
    ends = torch.empty(3, len(draws.distances), dtype=torch.float64)
    for row, (column, risk) in enumerate(zip(draws.distances, draws.risks, strict=True)):
        within, count = int((column <= context.question.r).sum()), len(column)
        if count == 1:  # certain where nothing is random, not estimated: the interval is the point
            ends[:, row] = float(within)
            continue
        low, high = clopper_pearson(within, count, 1 - risk)
        ends[:, row] = torch.tensor([within / count, float(low), float(high)], dtype=ends.dtype)
    return ends[0], ends[1], ends[2]
