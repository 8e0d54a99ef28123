"""How far to trust a run of chains: effective sample size and R-hat, differentiable nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.display import three_lines
from robustvae.errors import ShapeError, check_count
from robustvae.mcmc.hmc import Chain


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """How far to trust the chains of each input: nothing here is averaged over the inputs.

    Attributes:
        acceptance: Mean acceptance probability over the input's chains, (B,).
        energy_error: Mean absolute energy error of the finite trajectories, in nats, (B,).
        divergences: Transitions after the warm-up that diverged, all chains together, (B,).
        r_hat: The worst coordinate's split R-hat over the input's chains, (B,).
        ess: The worst coordinate's effective sample size, all chains together, (B,).
        gradients: Gradient evaluations spent on each input, all chains together.
    """

    acceptance: Tensor
    energy_error: Tensor
    divergences: Tensor
    r_hat: Tensor
    ess: Tensor
    gradients: int

    @property
    def sound(self) -> Tensor:
        """Inputs with no divergence, R-hat below 1.1 and at least 10 effective draws, (B,)."""
        return (self.divergences == 0) & (self.r_hat < 1.1) & (self.ess >= 10)


@checked(formula=True)
def diagnose(chain: Chain, chains: int) -> Diagnosis:
    """The diagnostics of each input, from a run that kept its positions.

    Args:
        chain: A run of `hmc` with `keep=True`; the rows are `chains` copies of the inputs, one
            whole copy after the other, (chains x B, d).
        chains: Chains of each input.

    Raises:
        ShapeError: No positions, fewer than 4 of them, or rows that are not `chains` copies.

    References:
        Gelman et al., 2013, section 11.4; Geyer, 1992, section 3.3.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.mcmc import Kernel, diagnose, hmc
        >>> run = hmc(lambda z: -0.5 * z.square().sum(1), torch.zeros(12, 2),
        ...           Kernel(jitter=0.2), steps=200, keep=True, generator=rv.generator(0))
        >>> diagnose(run, chains=4).r_hat.shape
        torch.Size([3])
    """
    check_count(chains, "chains")
    if chain.draws is None:
        raise ShapeError("the run kept no positions: give keep=True")
    if chain.draws.shape[1] % chains:
        raise ShapeError(f"rows must be {chains} copies of the inputs, got {chain.draws.shape[1]}")
    draws = chain.draws.unflatten(1, (chains, -1))

    def by_input(values: Tensor) -> Tensor:
        return values.view(chains, -1)

    return Diagnosis(
        by_input(chain.acceptance).mean(0),
        by_input(chain.energy_error).mean(0),
        by_input(chain.divergences).sum(0),
        r_hat(draws).amax(1),
        ess(draws).sum(0).amin(1),
        chains * chain.gradients,
    )


@checked(formula=True)
def ess(draws: Tensor) -> Tensor:
    """Effective sample size of every chain and coordinate, by Geyer's initial monotone sequence.

    T / (1 + 2 sum of autocorrelations), the sum over pairs of lags while they are positive.

    Args:
        draws: Positions, time first, (T, ...), T at least 4.

    Returns:
        Effective number of draws, of the trailing shape.

    Raises:
        ShapeError: Fewer than 4 draws.

    References:
        Geyer, 1992, section 3.3.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.mcmc import ess
        >>> noise = torch.randn(2000, 3, generator=rv.generator(0))
        >>> bool((ess(noise) > 1000).all())
        True
    """
    _check(draws)
    length = draws.shape[0]
    deviation = draws.detach() - draws.detach().mean(0)
    # Twice the length, so that the circular correlation of the transform wraps onto zeros.
    spectrum = torch.fft.rfft(deviation, n=2 * length, dim=0)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * length, dim=0)[:length]
    correlation = covariance / covariance[0].clamp_min(torch.finfo(draws.dtype).tiny)
    # Sums of neighboring lags are positive and falling for a reversible chain, whatever the sign of
    # single ones: what breaks that is noise, and the sum stops there.
    pairs = correlation[: length // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).cumprod(0)
    total = (pairs.cummin(0).values * positive).sum(0)
    return length / (2 * total - 1).clamp_min(1 / length)


@checked(formula=True)
def r_hat(draws: Tensor) -> Tensor:
    """Split R-hat over restarts: near 1 where all chains of a coordinate agree.

    Args:
        draws: Positions of R chains with one target, (T, R, ...), T at least 4.

    Returns:
        sqrt(pooled variance estimate / variance within the half chains), of the trailing shape.

    Raises:
        ShapeError: Fewer than 4 draws, or no axis of chains.

    References:
        Gelman et al., 2013, section 11.4.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.mcmc import r_hat
        >>> noise = torch.randn(500, 4, generator=rv.generator(0))
        >>> bool((r_hat(noise) - 1).abs() < 0.02)
        True
    """
    _check(draws)
    if draws.ndim < 2:
        raise ShapeError(f"draws must be (T, R, ...), got {tuple(draws.shape)}")
    half = draws.shape[0] // 2
    halves = torch.cat([draws[:half], draws[-half:]], 1).detach()
    within = halves.var(0).mean(0)
    between = halves.mean(0).var(0)
    return ((half - 1) / half + between / within.clamp_min(torch.finfo(draws.dtype).tiny)).sqrt()


def _check(draws: Tensor) -> None:
    if draws.ndim < 1 or draws.shape[0] < 4:
        raise ShapeError(f"draws must be (T, ...) with T >= 4, got {tuple(draws.shape)}")
