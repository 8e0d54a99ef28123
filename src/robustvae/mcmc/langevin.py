"""Langevin dynamics: HMC whose trajectories are a single leapfrog step."""

from __future__ import annotations

import torch
from torch import Tensor

from robustvae.mcmc.hmc import Adapt, Chain, hmc
from robustvae.mcmc.leapfrog import LogDensity


def langevin(
    log_density: LogDensity,
    z: Tensor,
    *,
    steps: int,
    step_size: float | Tensor = 0.1,
    adjust: bool = True,
    adapt: Adapt | None = "chain",
    warmup: int | None = None,
    scale: Tensor | None = None,
    keep: bool = False,
    graph: bool = False,
    generator: torch.Generator,
) -> Chain:
    r"""z <- z + step^2/2 grad + step noise, Metropolis-adjusted (MALA) or not (ULA).

    Args:
        log_density: Positions (B, d) to log densities (B,).
        z: Starts, (B, d).
        steps: Transitions, one gradient each.
        step_size: First step size, one number or (B,).
        adjust: Accept or stay by the Metropolis rule. Without it the step size stays as given
            and the chain's law is off by a term of order step^2.
        adapt: As in `hmc`, towards an acceptance of 0.574.
        warmup: As in `hmc`.
        scale: Square root of the inverse mass matrix: see `leapfrog`.
        keep: Return all positions after the warm-up.
        graph: Keep the graph through the whole run.
        generator: Spent on noise and decisions.

    References:
        Roberts & Rosenthal, 1998 (the acceptance rate); Neal, 2011, section 5.2.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.mcmc import langevin
        >>> chain = langevin(lambda z: -0.5 * z.square().sum(1), torch.zeros(4, 2), steps=20,
        ...                  generator=rv.generator(0))
        >>> chain.gradients
        21
    """
    return hmc(
        log_density,
        z,
        steps=steps,
        step_size=step_size,
        n_leapfrog=1,
        adapt=adapt if adjust else None,
        acceptance=0.574,
        warmup=warmup,
        scale=scale,
        adjust=adjust,
        keep=keep,
        graph=graph,
        generator=generator,
    )
