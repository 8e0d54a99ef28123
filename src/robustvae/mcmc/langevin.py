"""Langevin dynamics: HMC whose trajectories are a single leapfrog step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.mcmc.adaptation import Adaptation, FixedStep, PerChain
from robustvae.mcmc.hmc import DEFAULT_KERNEL, Chain, Kernel, hmc
from robustvae.mcmc.leapfrog import LogDensity

# The acceptance at which MALA mixes quickest, in the limit of many dimensions.
MALA = PerChain(acceptance=0.574)


@checked()
def langevin(
    log_density: LogDensity,
    z: Tensor,
    kernel: Kernel = DEFAULT_KERNEL,
    *,
    steps: int,
    adaptation: Adaptation = MALA,
    keep: bool = False,
    generator: torch.Generator,
) -> Chain:
    r"""z <- z + step^2/2 grad + step noise, Metropolis-adjusted (MALA) or not (ULA).

    Args:
        log_density: Positions (B, d) to log densities (B,).
        z: Starts, (B, d).
        kernel: How a transition is made; its trajectories are one step long, whatever
            `n_leapfrog` says. Without `adjust` the step size stays as given and the chain's law is
            off by a term of order step^2.
        steps: Transitions, one gradient each.
        adaptation: As in `hmc`; by default each chain's own, towards an acceptance of 0.574.
        keep: Return all positions after the warm-up.
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
        replace(kernel, n_leapfrog=1),
        steps=steps,
        # What is always accepted tells nothing about the step size.
        adaptation=adaptation if kernel.adjust else FixedStep(adaptation.warmup),
        keep=keep,
        generator=generator,
    )
