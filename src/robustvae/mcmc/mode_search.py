"""The mode of any batched log-density, every row of the batch by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.errors import check_count, check_positive
from robustvae.mcmc.leapfrog import LogDensity, evaluate


@final
@dataclass(frozen=True, eq=False)
class Mode:
    """The highest point that a mode search met.

    Attributes:
        z: Positions, (B, d).
        log_density: Log density there, in nats up to a constant, (B,).
        gradients: Gradient evaluations spent on each row.
    """

    z: Tensor
    log_density: Tensor
    gradients: int


def mode_search(
    log_density: LogDensity, z: Tensor, *, steps: int, rate: float = 0.1, graph: bool = False
) -> Mode:
    """Climb by Adam, the rate falling to zero along a half cosine; the best point met is kept.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        z: Starts, (B, d).
        steps: Gradient evaluations, the one at the start included.
        rate: First step length in every coordinate.
        graph: Keep the graph through the search, for attacks that differentiate it.

    Raises:
        RangeError: `steps` or `rate` is not positive.

    References:
        Kingma & Ba, 2015, Algorithm 1; [Kuzina22] appendix B.3.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import mode_search
        >>> mode = mode_search(lambda z: -(z - 1).square().sum(1), torch.zeros(1, 2), steps=100)
        >>> bool((mode.z - 1).abs().max() < 0.01)
        True
    """
    check_count(steps, "steps")
    check_positive(rate, "rate")
    state = evaluate(log_density, z, graph=graph)
    best, highest = state.z, state.log_density.detach()
    mean = square = torch.zeros_like(state.z)
    for t in range(1, steps):
        mean = 0.9 * mean + 0.1 * state.gradient
        square = 0.999 * square + 0.001 * state.gradient.square()
        length = 0.5 * rate * (1 + math.cos(math.pi * (t - 1) / steps))
        uphill = mean / (1 - 0.9**t) / (square / (1 - 0.999**t) + 1e-16).sqrt()
        state = evaluate(log_density, state.z + length * uphill, graph=graph)
        height = state.log_density.detach()
        higher = height > highest
        best = torch.where(higher.unsqueeze(1), state.z, best)
        highest = torch.where(higher, height, highest)
    return Mode(best, highest, steps)
