"""Gradients against central differences: does a model's gradient tell how its output moves?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.errors import single_line
from robustvae.seeding import generator, randn

BUDGET = 4.0  # seconds that the differences may take
CALLS = 4  # evaluations for one direction: two signs, two step sizes
INSIDE = 0.004  # inputs are drawn into [0.004, 0.996], where clipping has one slope on both sides
NEARBY = (0.0, 0.03, 0.15)  # standard deviations of the points around an input
ROWS = 4
RANDOM = 6  # directions: a gradient wrong by a share s misses each by s on average
CHAOTIC = 0.1  # relative disagreement of two step sizes above which differences say nothing
LEAST = 0.02  # relative error of a gradient that rounding and kinks may make in float64
LEAST_SINGLE = 0.1  # and in float32
MARGIN = 5.0  # times the disagreement of the step sizes
FAR = 1.0  # l2 size of a step that leaves any plateau which an attack would meet
FLAT = 1e-9  # slopes below this share of the output's size are 0 to rounding


@final
@dataclass(frozen=True)
class GradientCheck:
    """What the comparison says.

    Attributes:
        reaches: Whether the gradient is other than 0 where the output moves; None on a plateau.
        agrees: Whether it agrees with differences; None where they say nothing.
        message: What was seen, in a sentence.
        remedy: What to do about it.
    """

    reaches: bool | None
    agrees: bool | None
    message: str
    remedy: str = ""


def check_gradient(
    output: Callable[[Tensor], Tensor], x: Tensor, *, seconds: float = 0.0, is_exact: bool = True
) -> GradientCheck:
    """Compare the gradient of a random mixture of outputs with central differences.

    Along the gradient itself and along random directions, at the inputs and at points nearby: a
    gradient averaged over blocks agrees along itself, one that is right at the inputs alone agrees
    there. Two step sizes are compared first; where they disagree the map is chaotic at that scale,
    and nobody is accused.

    Args:
        output: Inputs (B, ...) to outputs (B, ...); the same for the same input and batch.
        x: Inputs in [0, 1], (B, C, H, W).
        seconds: What one call on `x` takes; slow models are looked at in fewer places.
        is_exact: Whether it computes in float64.

    Examples:
        >>> import torch
        >>> from robustvae.models.gradients import check_gradient
        >>> check_gradient(lambda x: x.square(), torch.rand(2, 1, 4, 4).double()).agrees
        True
    """
    rows, directions, nearby = _effort(len(x), seconds)
    source = generator(7, x.device)
    base = INSIDE + (1 - 2 * INSIDE) * x[:rows].clamp(0, 1)
    points = torch.cat(
        [
            (base + sigma * randn(*base.shape, like=x, generator=source)).clamp(INSIDE, 1 - INSIDE)
            if sigma
            else base
            for sigma in nearby
        ]
    )
    y = points.clone().requires_grad_()
    with torch.enable_grad():
        value = output(y)
        weights = randn(*value[:1].shape, like=value.detach(), generator=source)
        weights = weights / math.sqrt(weights.numel())
        total = (value * weights).sum()
        if not value.requires_grad:
            gradient = torch.zeros_like(points)
        else:
            try:
                (gradient,) = torch.autograd.grad(
                    total, y, allow_unused=True, materialize_grads=True
                )
            except Exception as error:  # a stranger's backward pass may raise anything
                return GradientCheck(
                    None,
                    False,
                    f"the backward pass raises {type(error).__name__}: {single_line(error)}",
                    "mend it (checkpoint(..., use_reentrant=False)), or judge by searches without "
                    "gradients",
                )
    gradient = gradient.detach()
    size = float(value.detach().abs().mean()) + 1e-12
    if not bool(gradient.isfinite().all()):
        return GradientCheck(
            None,
            False,
            "the gradient holds a NaN or an infinity",
            "look for the square root or logarithm of 0 on the way",
        )

    def function(at: Tensor) -> Tensor:
        with torch.no_grad():
            return (output(at) * weights).flatten(1).sum(1)

    units = [_unit(gradient)]
    units += [_unit(randn(*points.shape, like=x, generator=source)) for _ in range(directions)]
    wide, narrow = (1e-4, 2.5e-5) if is_exact else (2e-2, 1e-2)
    slopes = torch.stack([(gradient * unit).flatten(1).sum(1) for unit in units]).double()
    coarse, fine = (
        torch.stack(
            [
                (function(points + step * unit) - function(points - step * unit)) / (2 * step)
                for unit in units
            ]
        ).double()
        for step in (wide, narrow)
    )
    # a staircase does not move by small steps and does by large ones
    far = torch.stack([function(points + FAR * unit) - function(points) for unit in units])
    jumps = bool((far.double().abs() > FLAT * size).any())
    least = LEAST if is_exact else LEAST_SINGLE
    return _judged(slopes, (coarse, fine, jumps), size, least, is_exact)


def _effort(rows: int, seconds: float) -> tuple[int, int, tuple[float, ...]]:
    """Rows, random directions and points for a model whose call takes so long."""
    for count, directions, nearby in (
        (min(rows, ROWS), RANDOM, NEARBY),
        (min(rows, 2), 4, NEARBY),
        (1, 3, NEARBY[:2]),
    ):
        calls = CALLS * (1 + directions) * count * len(nearby) / max(rows, 1)
        if calls * seconds <= BUDGET:
            break
    return count, directions, nearby


def _judged(
    slopes: Tensor,
    differences: tuple[Tensor, Tensor, bool],
    size: float,
    least: float,
    is_exact: bool,
) -> GradientCheck:
    """The comparison, from slopes and differences of (directions, points)."""
    coarse, fine, jumps = differences
    floor = size * (FLAT if is_exact else 1e-4)
    moves = fine.abs().amax(0).maximum(coarse.abs().amax(0)) > floor
    climbs = slopes.abs().amax(0) > floor
    if not bool((moves | climbs).any()):
        if jumps:
            return GradientCheck(
                False,
                False,
                "a plateau: output and gradient are both still for small steps, and the output "
                "jumps for large ones",
                "judge by searches without gradients: the input is rounded somewhere on the way",
            )
        return GradientCheck(
            None,
            None,
            "a plateau: the output and its gradient are both still around every point",
            "judge by searches without gradients, and by larger steps",
        )
    if not bool(climbs[moves].any()) and bool(moves.any()):
        return GradientCheck(
            False,
            False,
            "the output moves with the input and its gradient is 0",
            "remove detach(), no_grad() and rounding on the way",
        )
    if not bool(moves.any()):
        return GradientCheck(
            True,
            False,
            "the gradient is not 0 and the output does not move: the gradient is a substitute",
            "use searches without gradients beside those with them",
        )
    norm = torch.linalg.vector_norm
    # along random directions and along the gradient, each point by itself: a lie at one place shows
    parts = {"random directions": slice(1, None), "the gradient": slice(0, 1)}
    worst, where, unclear, verdicts = 0.0, "", 0, 0
    for words, rows in parts.items():
        scale = norm(fine[rows], dim=0).maximum(norm(slopes[rows], dim=0))
        is_large = scale > floor
        chaos = norm(coarse[rows] - fine[rows], dim=0) / scale.clamp_min(floor)
        error = norm(slopes[rows] - fine[rows], dim=0) / scale.clamp_min(floor)
        clear = is_large & (chaos <= CHAOTIC)
        unclear += int((is_large & ~clear).sum())
        verdicts += int(clear.sum())
        excess = (error / (MARGIN * chaos).clamp_min(least))[clear]
        if len(excess) and float(excess.max()) > worst:
            worst, where = float(excess.max()), words
            wrong = float(error[clear][excess.argmax()])
    if verdicts == 0 or unclear > verdicts:
        return GradientCheck(
            True,
            None,
            "not informative: two step sizes disagree, so the map is chaotic at that scale",
            "searches without gradients are needed beside those with them",
        )
    if worst > 1:
        return GradientCheck(
            True,
            False,
            f"the gradient disagrees with central differences along {where}, by {wrong:.0%}",
            "attack with gradients by differences or without gradients; look for a replaced or "
            "partly detached backward pass",
        )
    return GradientCheck(
        True, True, f"the gradient agrees with central differences at {verdicts} places"
    )


def _unit(v: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(torch.finfo(v.dtype).tiny)
    return v / length.reshape(-1, *[1] * (v.ndim - 1))
