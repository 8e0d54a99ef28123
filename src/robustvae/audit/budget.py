"""A plan cut to a number of minutes, by a short measurement of what its parts cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from robustvae.attacks import Attack, MaximumDamage
from robustvae.audit.plan import Plan
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import generator

_SAMPLE = 4  # inputs of the measurement
_LEAST_INPUTS = 8
_SAFETY = 0.8  # of the budget: the measurement is short and machines are busy
# gradients of a margin search for each of its steps and restarts: rungs, rounds, and both boxes
_MARGIN_ROUNDS = 18


def fit_to_minutes(
    plan: Plan, named: Mapping[str, Victim], images: Images, minutes: float
) -> tuple[Plan, str]:
    """The plan, cut where it would take longer, and what was cut, in words.

    Fewer inputs first, down to 8; then fewer steps, queries and draws.
    """
    estimate = sum(_seconds(plan, victim, images) for victim in named.values())
    budget = _SAFETY * 60 * minutes
    if estimate <= budget:
        return plan, ""
    share = budget / estimate
    inputs = max(min(_LEAST_INPUTS, plan.inputs), int(plan.inputs * share))
    share_left = min(1.0, share * plan.inputs / inputs)
    update: dict[str, Any] = {"inputs": inputs, "shard": min(plan.shard, inputs)}
    words = f"cut to {minutes:g} minutes: {inputs} of {plan.inputs} inputs"
    if share_left < 1:
        attacks = []
        for attack in plan.attacks:
            search = dict(attack.search)
            for key, least in (("steps", 5), ("restarts", 1)):
                value = getattr(attack.build().search, key, None)
                if isinstance(value, int):
                    search[key] = max(least, int(value * share_left**0.5))
            attacks.append(attack.model_copy(update={"search": search}))
        update |= {
            "attacks": tuple(attacks),
            "gradient_free": int(plan.gradient_free * share_left),
            "longer": 1 if share_left < 0.5 else plan.longer,
            "draws": max(100, int(plan.draws * share_left)),
        }
        if plan.margins is not None:
            update["margins"] = plan.margins.model_copy(
                update={
                    "steps": max(5, int(plan.margins.steps * share_left**0.5)),
                    "restarts": max(1, int(plan.margins.restarts * share_left**0.5)),
                }
            )
        words += f", {100 * share_left:.0f} % of the steps, queries and draws"
    return plan.model_copy(update=update), words


def _seconds(plan: Plan, victim: Victim, images: Images) -> float:
    """What a plan takes for one victim, extrapolated from a few gradients and draws."""
    x = images.read(torch.arange(min(_SAMPLE, len(images))))
    x = x.to(device=victim.vae.device, dtype=victim.vae.dtype)
    search = ProjectedAscent(steps=2, restarts=2)
    attack = Attack(MaximumDamage(), search, Ball("l2", 0.5))
    attack(victim, x, generator=generator(0))  # the first call warms up
    begin = time.monotonic()
    attack(victim, x, generator=generator(0))
    gradient = (time.monotonic() - begin) / (len(x) * 6)
    begin = time.monotonic()
    many = x[:1].expand(64, *x.shape[1:]).contiguous()
    victim.reconstruct(many, generator=generator(0))
    forward = (time.monotonic() - begin) / 64
    gradients = 0.0
    for place, schedule in enumerate(plan.attacks):
        result = schedule.build().search
        steps = getattr(result, "steps", 50) * getattr(result, "restarts", 1)
        gradients += steps * (1 + (plan.longer if place == 0 and plan.longer > 1 else 0))
    if plan.margins is not None:
        gradients += plan.margins.steps * plan.margins.restarts * _MARGIN_ROUNDS
    attacks = len(plan.attacks) + 1 + len(plan.balls)
    forwards = plan.draws * (attacks + 6) + plan.gradient_free * len(plan.balls)
    return plan.inputs * (gradients * gradient + forwards * forward)
