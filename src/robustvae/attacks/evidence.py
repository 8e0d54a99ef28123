"""Whether an attack was a real one: it is run again in ways whose outcome is known beforehand.

What is measured here is judged by the audit's own checks (`robustvae list check`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.attacks.attack import AimedSearch, Attack, Search, aimed, ready
from robustvae.attacks.goals import Goal
from robustvae.defenses import PosteriorMean, Victim, is_posterior_mean
from robustvae.errors import check_images, check_positive
from robustvae.perturb import Ball, ProjectedAscent, RandomSearch, SearchResult, SquareSearch
from robustvae.records import Case, CheckResult
from robustvae.records.verdict import run_check
from robustvae.registry import name_of
from robustvae.seeding import split

CHECKS = (
    "inside_ball",
    "score_recomputed",
    "gradient_seen",
    "larger_radius_stronger",
    "longer_search_same",
    "beats_random_noise",
    "gradient_beats_gradient_free",
    "unbounded_attack_succeeds",
    "adaptive_at_least_transfer",
)
"""The checks that one attack can be judged by."""

_MORE = 4  # times the steps of the longer run: a search that climbs still shows it by then
_DRAWS = 100  # of noise at most: beyond that the best of them hardly grows
_NOISE = 0.05  # relative; scores that differ by more from call to call are random


@checked()
def evidence_checks(
    victim: Victim,
    x: Tensor,
    *,
    goal: Goal,
    ball: Ball,
    search: Search | AimedSearch | None = None,
    generator: torch.Generator,
) -> list[CheckResult]:
    """Judge an attack by the audit's checks, after it was run again in other ways.

    About ten times the attack's own cost: a handful of inputs is enough. Scores count from that of
    the clean input.

    Args:
        victim: What is attacked.
        x: Inputs, (B, C, H, W).
        goal: The attack's goal.
        ball: Its ball, with one radius for all inputs.
        search: Its search; by default `ProjectedAscent()`.
        generator: Spent by all attacks.

    Returns:
        What each of `CHECKS` says, in that order.

    References:
        Carlini et al., 2019 (On Evaluating Adversarial Robustness); Athalye et al., 2018.

    Examples:
        >>> from robustvae.attacks import MaximumDamage, evidence_checks
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> checks = evidence_checks(
        ...     rv.Victim(vae),
        ...     torch.rand(2, 1, 4, 4),
        ...     goal=MaximumDamage(),
        ...     ball=rv.Ball("l2", 0.5),
        ...     search=rv.ProjectedAscent(steps=5, restarts=2),
        ...     generator=rv.generator(0),
        ... )
        >>> [check.id for check in checks][:3]
        ['inside_ball', 'score_recomputed', 'gradient_seen']
    """
    check_images(x, victim.vae.image_shape, low=ball.low, high=ball.high)
    search = ProjectedAscent() if search is None else search
    Attack(goal, search, ball)  # validates the three
    seeds = iter(split(generator, 16))
    radius = ball.radii(x)[0].item()
    check_positive(radius, "radius")

    with ready(victim, x, ball) as clean:
        score = goal.bind(victim, clean, generator=next(seeds))
        _, plain_search = aimed(search, victim)
        raw = plain_search(score, clean, ball, generator=next(seeds))
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            start = score(clean, rows)
            again = score(raw.y, rows)
            reverse = score(raw.y.flip(0), rows.flip(0)).flip(0)
            exchange = score(clean.roll(1, 0), rows) - start

    def gains(by: Search | AimedSearch, radius: float = radius, at: Victim = victim) -> list[float]:
        """Scores of one attack on `at`, as `victim` sees what came of it, from the clean one's."""
        attack = Attack(goal, by, Ball(ball.norm, radius, ball.low, ball.high))
        result = attack.run(at, x, generator=next(seeds))
        value = result.score
        if at is not victim:
            value = attack.score(victim, x, result.x_adv, generator=next(seeds))
        return (value - start).double().tolist()

    base = gains(search)
    budget = int(raw.queries.float().mean())
    fields = {"goal": name_of("goal", goal) or "goal", "norm": ball.norm, "radius": radius}
    runs = {"gradient-free": gains(SquareSearch(steps=budget))}
    if dataclasses.is_dataclass(search) and getattr(search, "steps", 0):
        longer: Any = dataclasses.replace(search, steps=_MORE * search.steps)
        runs["longer"] = gains(longer)
    if not is_posterior_mean(victim.defense):
        runs["transfer"] = gains(search, at=dataclasses.replace(victim, defense=PosteriorMean()))
    noise = gains(RandomSearch(steps=min(budget, _DRAWS)))
    evidence = [
        {"input": i, "role": role, "score": value, **fields}
        for role, values in runs.items()
        for i, value in enumerate(values)
    ]
    evidence += [
        {**row, **fields, "score": value, "damage": value, "damage_noise": noise[row["input"]]}
        for row, value in zip(_searched(raw, clean, ball), base, strict=True)
    ]
    span = 1.0 if ball.low is None or ball.high is None else ball.high - ball.low
    pixels = x[0].numel()  # of a ball that holds every image of the range
    diameter = {"l0": float(pixels), "linf": span}.get(ball.norm, span * pixels**0.5)
    probes = {
        # of a score that changes from call to call no difference tells anything
        "again": None if _gap(reverse, again) > _NOISE else _gap(raw.score, again),
        "larger": {"base": _mean(base), "double": _mean(gains(search, 2 * radius))},
        "unbounded": {"whole": _mean(gains(search, diameter)), "swapped": float(exchange.mean())},
    }
    case = Case("victim", evidence, probes, {}, not is_posterior_mean(victim.defense))
    return [run_check(name, case) for name in CHECKS]


def _searched(raw: SearchResult, x: Tensor, ball: Ball) -> list[Mapping[str, Any]]:
    """What the search itself returned, before anybody projected or scored it again."""
    blind = (raw.gradient_norm == 0) | ~raw.score.isfinite()
    has_gradients = not bool(raw.gradient_norm.isnan().all())
    columns = zip(
        ball.contains(x, raw.y).tolist(),
        ball.size(x, raw.y).tolist(),
        raw.zero_gradients.tolist(),
        blind.tolist(),
        strict=True,
    )
    return [
        {
            "input": i,
            "role": "plan",
            "inside": inside,
            "size": size,
            "zero_gradients": share if has_gradients else None,
            "status": "inconclusive" if is_blind else "ok",
        }
        for i, (inside, size, share, is_blind) in enumerate(columns)
    ]


def _gap(a: Tensor, b: Tensor) -> float:
    """Greatest relative difference."""
    return float(((a - b).abs() / b.abs().clamp_min(1e-6)).max())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
