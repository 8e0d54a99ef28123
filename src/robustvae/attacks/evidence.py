"""Checks that an attack was a real one: what they say when they pass, and what when they fail."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks.attack import AimedSearch, Attack, Search, aimed, ready
from robustvae.attacks.goals import Goal
from robustvae.defenses import PosteriorMean, Victim, is_posterior_mean
from robustvae.errors import check_positive
from robustvae.perturb import Ball, ProjectedAscent, RandomSearch, SearchResult, SquareSearch
from robustvae.seeding import split

_SLACK = 0.05  # relative; searches restart at random, so two equal ones differ a little
_MORE = 4
_GAIN = 0.10


@final
@dataclass(frozen=True)
class Check:
    """One check on the evidence.

    Attributes:
        name: What was checked.
        passed: Whether it holds; None where it does not apply.
        value: What was measured, in words.
        meaning: What the check says, and what its failure means.
    """

    name: str
    passed: bool | None
    value: str
    meaning: str


def evidence_checks(
    victim: Victim,
    x: Tensor,
    *,
    goal: Goal,
    ball: Ball,
    search: Search | AimedSearch | None = None,
    generator: torch.Generator,
) -> list[Check]:
    """Was this attack a real one? Run it again in ways whose outcome is known beforehand.

    About ten times the attack's own cost: a handful of inputs is enough.

    Args:
        victim: What is attacked.
        x: Inputs, (B, C, H, W).
        goal: The attack's goal.
        ball: Its ball, with one radius for all inputs.
        search: Its search; by default `ProjectedAscent()`.
        generator: Spent by all attacks.

    Returns:
        The checks, in a fixed order.

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
        >>> [check.name for check in checks][:3]
        ['inside_ball', 'score_recomputed', 'gradient_seen']
    """
    search = ProjectedAscent() if search is None else search
    seeds = iter(split(generator, 16))
    radius = ball.radii(x)[0].item()
    check_positive(radius, "radius")

    def run(search: Search | AimedSearch, radius: float = radius, at: Victim = victim) -> Tensor:
        """Scores of one attack on `at`, as `victim` sees what it found, (B,)."""
        attack = Attack(goal, search, _resized(ball, radius))
        result = attack(at, x, generator=next(seeds))
        if at is victim:
            return result.score
        return attack.score(victim, x, result.x_adv, generator=next(seeds))

    with ready(victim, x, ball) as clean:
        score = goal.bind(victim, clean, generator=next(seeds))
        _, plain_search = aimed(search, victim)
        raw = plain_search(score, clean, ball, generator=next(seeds))
        rows = torch.arange(len(x), device=x.device)
        with torch.no_grad():
            again = score(raw.y, rows)
            reverse = score(raw.y.flip(0), rows.flip(0)).flip(0)
            # what replacing an image by another input of the batch achieves
            exchange = score(clean.roll(1, 0), rows).mean()
        inside = ball.contains(clean, raw.y)
    base = run(search)
    mean = float(base.mean())
    checks = [_inside(inside), _honest(raw.score, again, reverse), _gradients(raw)]

    larger = float(run(search, 2 * radius).mean())
    checks.append(
        Check(
            "larger_radius_stronger",
            larger >= mean - _SLACK * abs(mean),
            f"mean score {mean:.4g} at {radius:g}, {larger:.4g} at {2 * radius:g}",
            "Whatever a small ball allows, a larger one does too. If the score falls, the search "
            "is lost in the larger ball and its numbers are no upper bounds worth having.",
        )
    )
    if dataclasses.is_dataclass(search) and hasattr(search, "steps") and search.steps:
        longer = dataclasses.replace(search, steps=_MORE * search.steps)
        more = float(run(longer).mean())
        low, high = mean - _SLACK * abs(mean), mean + _GAIN * abs(mean)
        checks.append(
            Check(
                "longer_search_same",
                low <= more <= high,
                f"mean score {mean:.4g}, {more:.4g} with {_MORE} times the steps",
                "More steps are never weaker, and once a search has converged hardly stronger: "
                f"within {_GAIN:.0%}. If they are, the attack stopped too early and understates "
                "the weakness.",
            )
        )
    budget = int(raw.queries.float().mean())
    for name, words, other in (
        ("beats_random_noise", "random noise", RandomSearch(steps=min(budget, 100))),
        ("gradient_beats_gradient_free", "a search without them", SquareSearch(steps=budget)),
    ):
        rival = float(run(other).mean())
        checks.append(
            Check(
                name,
                mean >= rival,
                f"mean score {mean:.4g} against {rival:.4g}",
                f"Gradients find more than {words} with no more queries. If not, the gradients are "
                "masked or the search is broken.",
            )
        )
    free_attack = float(run(search, _everything(ball, x)).mean())
    checks.append(
        Check(
            "unbounded_attack_succeeds",
            free_attack >= float(exchange),
            f"mean score {free_attack:.4g}; with another input in its place {float(exchange):.4g}",
            "With the whole pixel range allowed an attack does at least as much as exchanging the "
            "image for another. If not, the search cannot see, whatever the radius.",
        )
    )
    meaning = (
        "The attack that sees the defense beats the one made for the undefended model. If not, "
        "it was blind: its gradients through the defense are masked or too noisy."
    )
    if is_posterior_mean(victim.defense):
        checks.append(Check("adaptive_at_least_transfer", None, "no defense", meaning))
    else:
        plain = dataclasses.replace(victim, defense=PosteriorMean())
        transfer = float(run(search, at=plain).mean())
        checks.append(
            Check(
                "adaptive_at_least_transfer",
                mean >= transfer - _SLACK * abs(transfer),
                f"mean score {mean:.4g}, transferred {transfer:.4g}",
                meaning,
            )
        )
    return checks


def _inside(inside: Tensor) -> Check:
    return Check(
        "inside_ball",
        bool(inside.all()),
        f"{int(inside.sum())} of {len(inside)} as the search returned them",
        "The search itself kept to the ball and the pixel range, to 1e-6; attacks project again "
        "whatever comes back. If not, its projection is wrong and the attack it found is not the "
        "one that was scored.",
    )


def _honest(claimed: Tensor, again: Tensor, turned: Tensor) -> Check:
    def gap(a: Tensor, b: Tensor) -> float:
        return float(((a - b).abs() / b.abs().clamp_min(1e-6)).max())

    random = gap(turned, again) > _SLACK
    return Check(
        "score_recomputed",
        None if random else gap(claimed, again) <= _SLACK,
        f"greatest relative difference {gap(claimed, again):.2g}"
        + (", the defense is random" if random else ""),
        "The score that the search saw is the one of what it returned. If not, it kept another "
        "point than its best, or its score changes from call to call.",
    )


def _gradients(raw: SearchResult) -> Check:
    norm = raw.gradient_norm
    meaning = (
        "The search met gradients other than 0 on every input. Where it did not, the outcome is "
        "inconclusive, never robust: something detaches, saturates or rounds."
    )
    if bool(norm.isnan().all()):
        return Check("gradient_seen", None, "a search without gradients", meaning)
    share = float(raw.zero_gradients.mean())
    return Check(
        "gradient_seen",
        bool((norm > 0).all()) and share < 0.5,
        f"greatest norm {float(norm.max()):.3g}, least {float(norm.min()):.3g}; "
        f"{share:.1%} exactly 0",
        meaning,
    )


def _resized(ball: Ball, radius: float) -> Ball:
    return Ball(ball.norm, radius, ball.low, ball.high)


def _everything(ball: Ball, x: Tensor) -> float:
    """A radius from which every image of the pixel range can be reached."""
    span = 1.0 if ball.low is None or ball.high is None else ball.high - ball.low
    count = x[0].numel()
    return {"l0": float(count), "linf": span}.get(ball.norm, span * count**0.5)
