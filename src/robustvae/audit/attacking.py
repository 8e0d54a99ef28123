"""Which attacks are made on a victim, and those whose change is one for all inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from robustvae.attacks import Attack
from robustvae.attacks.attack import AttackResult, take_rows
from robustvae.audit.context import Context
from robustvae.audit.plan import AttackPlan, Plan
from robustvae.audit.protocol import Inputs
from robustvae.audit.store import unpacked_result
from robustvae.defenses import Victim
from robustvae.perturb import (
    Ball,
    CentralDifferences,
    ExploredAscent,
    Masked,
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
    longer = _longer(first.build().search, plan.longer)
    for norm, radius in plan.balls:
        leader = next(attack for attack in plan.attacks if attack.ball == (norm, radius))
        if plan.gradient_free:
            square = SquareSearch(steps=plan.gradient_free)
            attack = dataclasses.replace(leader.build(), search=square)
            work.append(("gradient-free", leader, attack, context.victim))
            climb = climb_of(leader.build().search)
            if climb is not None:
                attack = dataclasses.replace(attack, search=ExploredAscent(climb, square))
                work.append(("explored", leader, attack, context.victim))
        if leader is first and longer is not None:
            attack = dataclasses.replace(first.build(), search=longer)
            work.append(("longer", first, attack, context.victim))
        if plan.transfer and context.defended:
            work.append(("transfer", leader, leader.build(), context.plain))
        if lies:
            attack = dataclasses.replace(leader.build(), search=CentralDifferences())
            work.append(("differences", leader, attack, context.victim))
    return work


def climb_of(search: Any) -> ProjectedAscent | None:
    """How a search climbs from where squares ended; None for one that cannot start there.

    Others than projected ascent see less, or look through something else.
    """
    return dataclasses.replace(search, restarts=1) if isinstance(search, ProjectedAscent) else None


def _longer(search: Any, times: int) -> Any:
    """The search with as many times its steps; None where it has none, or stays as long."""
    steps = getattr(search, "steps", None)
    if times <= 1 or not dataclasses.is_dataclass(search) or not isinstance(steps, int):
        return None
    return dataclasses.replace(search, steps=times * steps)  # type: ignore[type-var]


def beginning(job: Job, place: int, done: Sequence[Mapping[str, Any]], x: Tensor) -> Tensor | None:
    """Where an attack goes on, (B, ...); None for one that begins by itself.

    A climb goes on from where the squares of its ball ended, a longer run from the better of the
    shorter one and of that climb.

    Args:
        job: The attack.
        place: That of the plan's attack that it follows.
        done: What was found before, as parts of the stage hold it.
        x: The inputs.
    """
    roles = {"explored": ("gradient-free",), "longer": ("plan", "explored")}.get(job[0], ())
    found = [
        unpacked_result(one, x) for one in done if one["role"] in roles and one["place"] == place
    ]
    if not found:
        return None
    best = torch.stack([one.score for one in found]).nan_to_num(-torch.inf).argmax(0)
    return torch.stack([one.x_adv for one in found])[best, torch.arange(len(x))]


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
    search: Any = attack.search
    if isinstance(search, Masked):  # what is masked stays so on the way
        inner = go_on(dataclasses.replace(attack, search=search.search), begin).search
        return dataclasses.replace(attack, search=dataclasses.replace(search, search=inner))
    if isinstance(search, ExploredAscent):
        search = search.search
    if not isinstance(search, ProjectedAscent):
        return attack
    return dataclasses.replace(attack, search=GoOn(search, begin))


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
