"""What every goal promises."""

from __future__ import annotations

import torch
from torch import Tensor

from robustvae.attacks import Attack
from robustvae.attacks.goals import Goal
from robustvae.defenses import Victim
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import generator, randn
from robustvae.testing.contracts import close, member_of, require, unchanged


def check_goal(
    goal: Goal | str, victim: Victim, x: Tensor, ball: Ball, optimum: Tensor | float | None
) -> None:
    """Check a goal's contract: a fixed, row-wise, differentiable score that reaches its optimum.

    Args:
        goal: The goal, or its spec.
        victim: A victim on which the optimum is known.
        x: Its inputs in float64, (B, C, H, W), B at least 2.
        ball: Where the attacker may go.
        optimum: The greatest score in the ball, one number or (B,): ascent must come within 2 %
            of it and never above. None where no closed form is known: ascent must then beat every
            one of 200 random points.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.testing import check_goal, linear_vae
        >>> vae, w, v = linear_vae()
        >>> x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
        >>> best = 0.1 * float(torch.linalg.matrix_norm(v @ w, 2))
        >>> check_goal(rv.MaximumDamage(), rv.Victim(vae), x, rv.Ball("l2", 0.1), best)
    """
    member: Goal = member_of("goal", goal)
    what = f"the goal {type(member).__name__}"
    require(isinstance(member, Goal), f"{what} has no bind(victim, x, *, generator)")
    with unchanged(victim.vae, what):
        score = member.bind(victim, x, generator=generator(0))
        rows = torch.arange(len(x))
        step = 0.3 * float(torch.as_tensor(ball.radius).min())
        direction = randn(*x.shape, like=x, generator=generator(1))
        y = ball.project(x, x + step * direction / direction[0].numel() ** 0.5)
        values = score(y, rows)
    require(values.shape == (len(x),), f"{what} returns {tuple(values.shape)}, not one score a row")
    require(close(score(y, rows), values, 1e-12), f"{what} is not a fixed function once bound")
    order = rows.flip(0)
    require(
        close(score(y[order], order), values[order], 1e-9)
        and close(score(y[:1], rows[:1]), values[:1], 1e-9),
        f"{what} lets a row's score depend on the other rows",
    )
    _check_gradient(score, y, rows, what)
    search = ProjectedAscent(steps=80, restarts=5)
    result = Attack(member, search, ball)(victim, x, generator=generator(3))
    if optimum is not None:
        best = torch.as_tensor(optimum, dtype=x.dtype).expand(len(x))
        slack = 0.02 * best.abs() + 1e-9
        require(
            bool((result.score >= best - slack).all()),
            f"{what} ends at {float((result.score - best).min()):.3g} below its optimum",
        )
        require(
            bool((result.score <= best + 1e-6 * best.abs() + 1e-9).all()),
            f"{what} is scored above the optimum: the optimum given is wrong, or the score is",
        )
        return
    noise = randn(200, *x.shape, like=x, generator=generator(4))
    points = [ball.project(x, x + far) for far in noise]
    random = torch.stack([score(point, rows).detach() for point in points]).amax(0)
    require(
        bool((result.score >= random - 1e-9).all()),
        f"{what} ends below the best of 200 random points: its gradient leads nowhere",
    )


def _check_gradient(score, y: Tensor, rows: Tensor, what: str) -> None:  # type: ignore[no-untyped-def]
    """The gradient against central differences along one random direction."""
    leaf = y.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(leaf, rows).sum(), leaf)
    direction = randn(*y.shape, like=y, generator=generator(5))
    step = 1e-6  # float64: truncation and rounding both near 1e-10
    with torch.no_grad():
        slope = (score(y + step * direction, rows) - score(y - step * direction, rows)) / (2 * step)
    along = (gradient * direction).flatten(1).sum(1)
    scale = along.abs() + slope.abs() + 1e-6
    require(
        bool(((along - slope).abs() <= 1e-3 * scale + 1e-6).all()),
        f"{what} has a gradient that disagrees with central differences",
    )
