"""[Barrett22]'s bounds: the baseline that ours must beat."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.bounds.numbers import SLACK, double
from robustvae.bounds.search import largest
from robustvae.errors import check_choice, check_probability


@checked(formula=True)
def barrett_probability(
    size: Any, stddev_norm: Any, *, r: float, a: float, b: float, c: float, latent: int
) -> Tensor:
    """The paired r-robustness probability that [Barrett22] certifies: 1 - min(p1, p2).

    With s = c ||delta|| + 2 ||sigma(x)||: p1 = a^2 (b^2 ||delta||^2 + s^2) / r^2, and p2 the
    tail of a chi-square beyond u = (r/a - b ||delta||)^2 / s^2.

    Args:
        size: ||delta||, l2 in pixel units, (B,).
        stddev_norm: ||sigma(x)||, (B,).
        r: l2 distance between outputs, in pixel units.
        a: Lipschitz constant of the decoder's mean.
        b: Lipschitz constant of the encoder's mean.
        c: Lipschitz constant of the encoder's standard deviation.
        latent: Dimension d.

    Returns:
        Probabilities, (B,).

    References:
        [Barrett22] Theorem 1; Inglot, 2010.

    Examples:
        >>> from robustvae.bounds import barrett_probability
        >>> float(barrett_probability(0.0, 0.1, r=8.0, a=1.0, b=1.0, c=0.0, latent=10)) > 0.999
        True
    """
    size, stddev_norm = double(size), double(stddev_norm)
    spread = c * size + 2 * stddev_norm
    p1 = markov_failure(r / a, b * size, spread.square())
    p2 = tail_failure(r / a, b * size, spread, latent)
    return 1 - torch.minimum(p1, p2)


@checked(formula=True)
def barrett_margin(
    stddev_norm: Any, *, r: float, m: float, a: float, b: float, c: float, latent: int
) -> Tensor:
    """[Barrett22]'s margin max(m1, m2): the baseline that our certificates must beat.

    m1 is the larger root of (b^2 + c^2) q^2 + 4 c ||sigma|| q + 4 ||sigma||^2 = (1 - m) r^2 / a^2,
    m2 the largest q with p2 <= 1 - m.

    Args:
        stddev_norm: ||sigma(x)||, (B,).
        r: l2 distance between outputs.
        m: Probability wanted, in (0, 1).
        a: Lipschitz constant of the decoder's mean.
        b: Lipschitz constant of the encoder's mean.
        c: Lipschitz constant of the encoder's standard deviation.
        latent: Dimension d.

    Returns:
        Margins, l2 in pixel units, (B,).

    References:
        [Barrett22] Lemma 2.
    """
    check_probability(m, "m")
    norm = double(stddev_norm)
    left = (1 - m) * r**2 / a**2 - 4 * norm.square()
    square = b**2 + c**2
    # the root of Markov's quadratic; a negative discriminant means that no radius holds
    root = (4 * c**2 * norm.square() + square * left).clamp_min(0).sqrt()
    m1 = torch.where(left > 0, (root - 2 * c * norm) / square, 0.0).clamp_min(0)

    def holds(rho: Tensor) -> Tensor:
        return tail_failure(r / a, b * rho, c * rho + 2 * norm, latent) <= 1 - m

    return torch.maximum(m1, largest(holds, torch.full_like(norm, r / a / b)))


@checked(formula=True)
def barrett_global_margin(
    stddev: float,
    *,
    r: float,
    m: float,
    a: float,
    b: float,
    latent: int,
    displacement: str = "paired",
) -> float:
    """[Barrett22]'s margin for every input at once, one sigma for all coordinates.

    The stronger of two readings of Theorem 3: u = (r/a - b q)^2 / (2 sigma^2), which is exact for
    the paired difference. "centered" is the same two tail bounds for N(shift, sigma^2 I).

    Args:
        stddev: The fixed sigma of every coordinate.
        r: l2 distance between outputs.
        m: Probability wanted, in (0, 1).
        a: Lipschitz constant of the decoder's mean.
        b: Lipschitz constant of the encoder's mean.
        latent: Dimension d.
        displacement: "paired" or "centered".

    References:
        [Barrett22] Theorem 3.

    Examples:
        >>> from robustvae.bounds import barrett_global_margin
        >>> round(barrett_global_margin(0.1, r=8, m=0.5, a=10, b=10, latent=10), 3)
        0.032
    """
    check_choice("displacement", displacement, ("centered", "paired"))
    is_paired = displacement == "paired"
    total = torch.tensor([(4 if is_paired else 1) * latent * stddev**2], dtype=torch.float64)
    spread = stddev * math.sqrt(2 if is_paired else 1)

    def holds(rho: Tensor) -> Tensor:
        p1 = markov_failure(r / a, b * rho, total)
        return torch.minimum(p1, tail_failure(r / a, b * rho, spread, latent)) <= 1 - m

    return float(largest(holds, torch.full_like(total, r / a / b)))


@checked(formula=True)
def markov_failure(reach: Any, shift: Any, total: Any) -> Tensor:
    """min(1, (D^2 + T) / t^2), Markov's bound on P(||z - z'|| > t); with T = sum s_j^2 it is ours.

    References:
        [Barrett22] Theorem 1, p1 (there T = s^2); docs/theory.md, "Trace-Markov".
    """
    ratio = (double(shift).square() + double(total)) / double(reach).square()
    return (ratio * (1 + SLACK)).clamp(max=1)


@checked(formula=True)
def tail_failure(reach: Any, shift: Any, spread: Any, latent: int) -> Tensor:
    """[Barrett22]'s p2: a chi-square's tail beyond u = (t - D)^2 / s^2, 1 where that says nothing.

    References:
        [Barrett22] Theorem 1, p2; Inglot, 2010, Theorem 4.1.
    """
    gap = double(reach) - double(shift)
    u = gap.square() / double(spread).square()
    excess = u - latent + 2
    # Inglot's tail holds beyond the mean only; elsewhere nothing better than 1 is known
    valid = (gap > 0) & (excess > 0) & (latent >= 2)
    safe = torch.where(valid, u, float(latent))
    constant = 0.5 * (latent - (latent - 1) * math.log(latent)) - 0.5 * math.log(math.pi)
    log_tail = constant + latent / 2 * safe.log() - safe / 2 - (safe - latent + 2).log()
    return torch.where(valid, log_tail.clamp(max=0).exp(), 1.0)
