"""How likely a moved normal stays within a ball: the noncentral chi-square, and Markov's bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.bounds.barrett import markov_failure
from robustvae.bounds.numbers import CDF_SLACK, SLACK, double
from robustvae.bounds.search import largest
from robustvae.errors import RangeError, check_count, check_probability

_LEAST = 1e-3  # of the reach: what no spread is taken below


@checked(formula=True)
def noncentral_probability(reach: Any, shift: Any, spread: Any, latent: int) -> Tensor:
    """F(t^2/s^2; d, D^2/s^2), the noncentral chi-square's CDF, where it is at least 1/2.

    A normal difference with standard deviations at most s in every coordinate and mean within D
    stays within t at least this often (ours). Below 1/2 the statement is false: there the central
    chi-square's CDF at (t - D)^2 / s^2 stands, by the triangle inequality alone.

    Args:
        reach: t, positive, (B,).
        shift: D, at least 0, (B,).
        spread: s, at least 0, (B,).
        latent: Dimension d.

    Returns:
        Probabilities, (B,), `CDF_SLACK` already taken off.

    Raises:
        RangeError: A negative or undefined argument.

    References:
        docs/theory.md, "Noncentral chi-square": by Ehrhard's and Anderson's inequalities.

    Examples:
        >>> from robustvae.bounds import noncentral_probability
        >>> round(float(noncentral_probability(2.0, 0.0, 0.5, 10)), 4)
        0.9004
        >>> float(noncentral_probability(1.0, 2.0, 0.5, 10))
        0.0
    """
    from scipy import special

    reach, shift, spread = double(reach), double(shift), double(spread)
    for part in (reach, shift, spread):
        if not bool((part >= 0).all()):
            raise RangeError("reach, shift and spread must be numbers of at least 0")
    value = isotropic_mass(reach, shift, spread, latent)
    # without any spread the ratio is infinite, or not a number where nothing is left
    gap = ((reach - shift).clamp_min(0) / spread).detach().nan_to_num(nan=0.0).square()
    central = torch.as_tensor(special.chdtr(latent, (gap * (1 - SLACK)).cpu().numpy()))
    central = (central.to(value.device) - CDF_SLACK).clamp_min(0)
    # below 1/2 unequal spreads may lower it, and the triangle inequality alone stands; of spreads
    # that were taken as larger ones it may say more
    return torch.where(value >= 0.5, torch.maximum(value, central), central)


@checked(formula=True)
def isotropic_guess(
    reach: Tensor, shift: Callable[[Tensor], tuple[Tensor, Tensor]], m: float, latent: int
) -> Tensor:
    """About the radius at which the isotropic mass is m, by Sankaran's normal approximation.

    Args:
        reach: t, positive, (B,).
        shift: Radii (B,) to the mean's movement D and the spread s, each (B,).
        m: Probability wanted.
        latent: Dimension d.

    References:
        Sankaran, 1963.
    """
    quantile = torch.special.ndtri(double(m))

    def holds(rho: Tensor) -> Tensor:
        displacement, spread = shift(rho)
        spread = _not_small(reach, spread)
        x, lam = (reach / spread).square(), (displacement / spread).square()
        mean, second = latent + lam, latent + 2 * lam
        h = 1 - 2 / 3 * mean * (latent + 3 * lam) / second.square()
        p = second / mean.square()
        q = (h - 1) * (1 - 3 * h)
        center = 1 + h * p * (h - 1 - 0.5 * (2 - h) * q * p)
        return ((x / mean) ** h - center) / (h * (2 * p).sqrt() * (1 + 0.5 * q * p)) > quantile

    return largest(holds, reach / shift(torch.ones_like(reach))[0], steps=24)


@checked(formula=True)
def isotropic_mass(reach: Any, shift: Any, spread: Any, latent: int) -> Tensor:
    """F(t^2/s^2; d, D^2/s^2), rounded down: smooth, but of unequal spreads no bound below 1/2.

    A spread of less than a thousandth of the reach is taken as that, and so is none at all.

    Examples:
        >>> from robustvae.bounds import isotropic_mass
        >>> round(float(isotropic_mass(2.0, 1.0, 0.5, 10)), 4)
        0.675
    """
    reach, shift = double(reach), double(shift)
    spread = _not_small(reach, double(spread))
    mass = _noncentral_cdf(
        (reach / spread).square() * (1 - SLACK),
        (shift / spread).square() * (1 + SLACK),
        latent,
    )
    return mass - CDF_SLACK


@checked(formula=True)
def trace_markov_probability(reach: Any, shift: Any, total: Any) -> Tensor:
    """1 - (D^2 + T) / t^2, or 0: needs only the sum T of the variances, and holds at any m (ours).

    Examples:
        >>> from robustvae.bounds import trace_markov_probability
        >>> round(float(trace_markov_probability(1.0, 0.5, 0.25)), 6)
        0.5
    """
    return 1 - markov_failure(reach, shift, total)


@checked(formula=True)
def chi_quantile(chance: float, latent: int) -> float:
    """The length that a standard normal vector of dimension d exceeds with chance 1 - `chance`.

    Rounded up.

    Examples:
        >>> from robustvae.bounds import chi_quantile
        >>> round(chi_quantile(0.5, 2), 4)
        1.1774
    """
    from scipy import special

    check_probability(chance, "chance")
    check_count(latent, "latent")
    return float(special.chdtri(latent, 1 - chance)) ** 0.5 * (
        1 + 1e-6
    )  # far above the quantile's own error: it is rounded up


def _not_small(reach: Tensor, spread: Tensor) -> Tensor:
    """The spread, at least a thousandth of the reach.

    The chi-square's bound takes any s that no coordinate exceeds, so that a larger one costs and
    never lies; beyond a ratio of 1e4 scipy's CDF is inexact, undefined or takes seconds. Of a ball
    of all space nothing needs to be kept.
    """
    least = torch.where(reach.isfinite(), reach * _LEAST, 0.0)
    return torch.maximum(spread, least)


class _NoncentralCDF(torch.autograd.Function):
    """scipy's CDF with its derivatives: the density in x, minus the density at d + 2 in lambda."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noncentral: Tensor, latent: int) -> Tensor:
        from scipy import special

        ctx.save_for_backward(x, noncentral)
        ctx.latent = latent
        value = special.chndtr(x.detach().cpu().numpy(), latent, noncentral.detach().cpu().numpy())
        return torch.as_tensor(value, dtype=torch.float64, device=x.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        from scipy.stats import ncx2

        # scipy gives values only: the derivatives are densities, in closed form
        x, noncentral = (tensor.cpu().numpy() for tensor in ctx.saved_tensors)
        density = torch.as_tensor(ncx2.pdf(x, ctx.latent, noncentral))
        above = torch.as_tensor(ncx2.pdf(x, ctx.latent + 2, noncentral))
        (grad,) = grads
        return grad * density.to(grad.device), -grad * above.to(grad.device), None


def _noncentral_cdf(x: Tensor, noncentral: Tensor, latent: int) -> Tensor:
    check_count(latent, "latent")
    x, noncentral = torch.broadcast_tensors(x, noncentral)
    value: Tensor = _NoncentralCDF.apply(x, noncentral, latent)
    return value
