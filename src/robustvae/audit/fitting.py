"""A plan cut to fit a number of minutes, and what was cut, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from robustvae.audit.budget import Costs, step_count
from robustvae.audit.plan import AttackPlan, Plan

_LEAST_INPUTS = 8
_SAFETY = 0.8  # of the budget: the measurement is short and machines are busy
_LAST_ATTACKS = 0.04  # share of the effort below which only the plan's first attack is made
_ALL_DRAWS = 0.3  # share of the effort from which goals keep all their draws
_LAST_MARGINS = 0.04  # and below which no margins are looked for


def fit_to_minutes(
    plan: Plan, costs: Costs, minutes: float, spent: float = 0.0
) -> tuple[Plan, str]:
    """The plan, cut where it would take longer, and what was cut, in words.

    Fewer inputs first, down to 8; then fewer steps, queries and draws, down to an attack of 20
    steps, 200 draws of smoothing and the leading eigenvalue; then fewer inputs still.

    Args:
        plan: What is cut.
        costs: Of its victims.
        minutes: The budget.
        spent: Seconds of it that are gone.
    """
    budget = _SAFETY * max(60 * minutes - spent, 1.0)
    estimate = costs.seconds(plan)
    if estimate <= budget:
        return plan, ""
    inputs = max(min(_LEAST_INPUTS, plan.inputs), int(plan.inputs * budget / estimate))
    fewer = plan.model_copy(update={"inputs": inputs, "shard": min(plan.shard, inputs)})
    share = 1.0
    result = fewer
    while costs.seconds(result) > budget and share > 1e-3:
        share *= 0.7
        result = reduced(fewer, share)
    price = costs.required(result)
    if price > budget:
        inputs = max(1, int(inputs * budget / price))
        result = result.model_copy(update={"inputs": inputs, "shard": min(result.shard, inputs)})
    words = f"cut to {minutes:g} minutes: {inputs} of {plan.inputs} inputs"
    words += "".join(f", {change}" for change in _changes(plan, result))
    losses = [attack.id for attack in fewer.attacks if attack.ball not in result.balls]
    losses += ["margins"] if fewer.margins is not None and result.margins is None else []
    losses += ["queries without gradient"] * bool(fewer.gradient_free and not result.gradient_free)
    if losses:
        words += f"; left out: {'; '.join(losses)}"
    return result, words


def _changes(plan: Plan, result: Plan) -> Iterator[str]:
    """What a plan has fewer of than the one that it was made of, in numbers."""

    def steps(one: Plan) -> int:
        search = one.attacks[0].build().search
        return step_count(search, 0) * int(getattr(search, "restarts", 1))

    for words, before, after in (
        ("steps of the first attack", steps(plan), steps(result)),
        ("queries without gradient", plan.gradient_free, result.gradient_free),
        ("draws of a probability", plan.draws, result.draws),
        ("draws of smoothing", plan.smoothing, result.smoothing),
        ("products of the geometry", plan.products, result.products),
        ("inputs of the checks", plan.probes, result.probes),
    ):
        if 0 < after < before:
            yield f"{after:,} of {before:,} {words}"


def reduced(plan: Plan, share: float) -> Plan:
    """A plan with about that share of its steps, queries and draws; no less than is required.

    Args:
        plan: What is reduced.
        share: In (0, 1].
    """

    def part(value: int, least: int, power: float = 1.0) -> int:
        return min(value, max(least, int(value * share**power)))

    attacks = []
    for attack in plan.attacks[: None if share > _LAST_ATTACKS else 1]:
        search = dict(attack.search)
        for key, least in (("steps", 20), ("restarts", 1)):
            value = getattr(attack.build().search, key, None)
            if isinstance(value, int):
                search[key] = part(value, least, 0.5)
        goal = dict(attack.goal)
        draws = getattr(attack.build().goal, "draws", None)
        if isinstance(draws, int) and share < _ALL_DRAWS:  # of the goals that have a random victim
            goal["draws"] = part(draws, 1, 0.5)
        # read anew, so that names are those that a stored plan gives: fields in their order
        fields = {"norm": attack.norm, "radius": attack.radius}
        attacks.append(AttackPlan.model_validate({"search": search, "goal": goal, **fields}))
    update: dict[str, Any] = {
        "attacks": tuple(attacks),
        "gradient_free": part(plan.gradient_free, 0) if share > 0.1 else 0,
        "longer": 1 if share < 0.5 else plan.longer,
        "draws": part(plan.draws, 100 if share > 0.1 else 30),
        "smoothing": part(plan.smoothing, 200),
        "products": part(plan.products, 12),
        "probes": part(plan.probes, 2, 0.5),
    }
    if plan.margins is not None:
        margins = {
            "steps": part(plan.margins.steps, 5, 0.5),
            "restarts": part(plan.margins.restarts, 1, 0.5),
        }
        update["margins"] = (
            plan.margins.model_copy(update=margins) if share > _LAST_MARGINS else None
        )
    return plan.model_copy(update=update)
