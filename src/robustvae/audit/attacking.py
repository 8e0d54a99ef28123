"""Which attacks are made on a victim, and those whose change is one for all inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from robustvae.attacks import Attack
from robustvae.attacks.attack import AttackResult, take_rows
from robustvae.audit.context import Context
from robustvae.audit.plan import AttackPlan, Plan
from robustvae.audit.protocol import Inputs
from robustvae.defenses import Victim
from robustvae.perturb import (
    Ball,
    CentralDifferences,
    ProjectedAscent,
    Score,
    SearchResult,
    SquareSearch,
)
from robustvae.perturb.ascent import ascend_from

Job = tuple[str, AttackPlan, Attack, Victim]
"""Why it is made, the plan's attack that it follows, the attack, and the victim it looks at."""


def jobs(plan: Plan, context: Context, lies: bool) -> list[Job]:
    """Every attack of the plan, and those that the library adds to any plan.

    Args:
        plan: The plan.
        context: The victim.
        lies: Whether the victim's gradient is missing, or not that of its function: then slopes by
            differences are climbed too.
    """
    work: list[Job] = [("plan", attack, attack.build(), context.victim) for attack in plan.attacks]
    first = plan.attacks[0]
    search = first.build().search
    if plan.longer > 1 and dataclasses.is_dataclass(search) and hasattr(search, "steps"):
        longer = dataclasses.replace(search, steps=plan.longer * search.steps)
        attack = dataclasses.replace(first.build(), search=longer)
        work.append(("longer", first, attack, context.victim))
    for norm, radius in plan.balls:
        leader = next(attack for attack in plan.attacks if attack.ball == (norm, radius))
        if plan.gradient_free:
            square = SquareSearch(steps=plan.gradient_free)
            attack = dataclasses.replace(leader.build(), search=square)
            work.append(("gradient-free", leader, attack, context.victim))
        if plan.transfer and context.defended:
            work.append(("transfer", leader, leader.build(), context.plain))
        if lies:
            attack = dataclasses.replace(leader.build(), search=CentralDifferences())
            work.append(("differences", leader, attack, context.victim))
    return work


@final
@dataclass(frozen=True, eq=False)
class GoOn:
    """A projected ascent that goes on from points that another search found, row by row.

    Args:
        search: How it climbs.
        begin: Where each input's climb begins, (B, ...), in the ball.
    """

    search: ProjectedAscent
    begin: Tensor = field(repr=False)

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Climb from the points; what is found is never less than they are."""
        return ascend_from(score, x, ball, self.search, self.begin.unsqueeze(1))


def go_on(attack: Attack, begin: Tensor) -> Attack:
    """The longer run of an attack from where its shorter one ended, where its search can do that.

    One climb of many steps from the best point costs a restart's part of as many from the start.
    """
    if not isinstance(attack.search, ProjectedAscent):
        return attack
    return dataclasses.replace(attack, search=GoOn(attack.search, begin))


def everyone(context: Context, inputs: Inputs) -> Context:
    """The context of all inputs of the audit, in the order of their numbers.

    A change that all inputs share is looked for on all of them at once, so that it is the same
    whatever the shards, the workers and the order of the inputs are.
    """
    order = sorted(range(len(inputs.numbers)), key=inputs.numbers.__getitem__)
    return dataclasses.replace(
        context,
        x=inputs.read(order).to(context.x),
        numbers=tuple(inputs.numbers[place] for place in order),
    )


def rows_of(result: AttackResult, numbers: Sequence[int], among: Sequence[int]) -> AttackResult:
    """The rows of some inputs, by their numbers, of an attack on more."""
    places = {number: row for row, number in enumerate(numbers)}
    rows = [places[number] for number in among]
    return take_rows(result, rows)
