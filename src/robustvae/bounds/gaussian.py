"""What an event of one normal says of another: first order, Neyman-Pearson, and Hoelder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.bounds.numbers import CDF_SLACK, double
from robustvae.errors import check_probability


@checked(formula=True)
def first_order_margin(probability: Any, m: float, jacobian: Tensor, stddev: Tensor) -> Tensor:
    """(Phi^-1(p) - Phi^-1(m)) / ||diag(sigma)^-1 J||_2: a linear extrapolation, not a guarantee.

    Never below `camuto_margin`. Exact where the encoder's mean is linear and sigma fixed, for any
    event of the output whose probability at the clean input is p.

    Args:
        probability: p, the r-robustness probability of the unperturbed input, (B,).
        m: Probability wanted, in (0, 1).
        jacobian: Of the encoder's mean, (B, d, D).
        stddev: sigma(x), (B, d).

    Returns:
        First-order margins, l2 in pixel units, (B,); 0 where p <= m.

    References:
        docs/theory.md, "First order"; [Camuto21] Theorem 1.
    """
    scaled = double(jacobian) / double(stddev)[:, :, None]
    return _normal_gap(probability, m) / torch.linalg.matrix_norm(scaled, ord=2)


@checked(formula=True)
def spectral_margin(probability: Any, m: float, jacobian: Tensor, stddev: Tensor) -> Tensor:
    """sigma_min (Phi^-1(p) - Phi^-1(m)) / ||J||_2, between the other two; same arguments.

    References:
        docs/theory.md, "First order".
    """
    least = double(stddev).amin(1)
    return least * _normal_gap(probability, m) / torch.linalg.matrix_norm(double(jacobian), ord=2)


@checked(formula=True)
def camuto_margin(probability: Any, m: float, jacobian: Tensor, stddev: Tensor) -> Tensor:
    """[Camuto21]'s first-order margin sigma_min (Phi^-1(p) - Phi^-1(m)) / ||J||_F; same arguments.

    References:
        [Camuto21] Theorem 1.
    """
    least = double(stddev).amin(1)
    return least * _normal_gap(probability, m) / torch.linalg.matrix_norm(double(jacobian))


@checked(formula=True)
def neyman_pearson_shift(probability: Any, m: float) -> Tensor:
    """Phi^-1(p) - Phi^-1(m): how far the latent mean may move, in standard deviations (ours).

    If an event of the output has probability at least p under N(mu, S), it has probability at
    least m under N(mu', S) as long as ||S^-1/2 (mu' - mu)|| is at most this. Any decoder.

    Args:
        probability: Lower bound p on the event's probability, (B,).
        m: Probability wanted, in (0, 1).

    Returns:
        Mahalanobis distances, (B,); 0 where p <= m.

    References:
        docs/theory.md, "Neyman-Pearson"; Cohen et al., 2019.
    """
    return _normal_gap(probability, m) * (1 - CDF_SLACK)


@checked(formula=True)
def moved_failure(failure: Any, shift: Any, stddev: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """How often an event can fail once mean and standard deviation have moved (ours).

    (e^{D_a} f)^{(a-1)/a}, the least over orders a > 1, with D_a the Renyi divergence of the moved
    normal from the first: by Hoelder's inequality. The smaller of two ways: mean and spread at
    once; or the mean first, exactly, by Neyman-Pearson, Phi(Phi^-1(f) + D), then the spread alone.

    Args:
        failure: Upper bound f on the event's failure probability under N(mu, diag stddev^2), (B,).
        shift: Bound on || (mu' - mu) / stddev ||, (B,).
        stddev: Standard deviations, positive, (B, d).
        least: Lower bounds on the moved ones, positive, (B, d).
        most: Upper bounds on the moved ones, (B, d).

    Returns:
        Upper bounds on its failure probability under N(mu', diag stddev'^2), (B,), at most 1.

    References:
        docs/theory.md, "Neyman-Pearson".

    Examples:
        >>> import torch
        >>> from robustvae.bounds import moved_failure
        >>> one = torch.ones(1, 2)
        >>> still = moved_failure(0.01, 0.0, one, one, one)
        >>> round(float(still), 4), round(float(moved_failure(0.01, 1.0, one, one, 1.1 * one)), 3)
        (0.01, 0.181)
    """
    stddev, failure, shift = double(stddev), double(failure), double(shift)
    ends = [(double(end) / stddev).square() for end in (least, most)]
    still = torch.special.ndtr(torch.special.ndtri(failure) + shift) * (1 + CDF_SLACK)
    together = _by_hoelder(failure, shift.square(), ends)
    return torch.minimum(together, _by_hoelder(still, torch.zeros_like(shift), ends))


def _by_hoelder(failure: Tensor, square: Tensor, ends: list[Tensor]) -> Tensor:
    """Hoelder's bound with a squared shift and intervals of the ratio of variances, (B,)."""
    square = square[..., None]
    # every order gives a bound: a grid finds nearly the best, without a search that might fail
    order = 1 + torch.logspace(-2, 3, 200, dtype=torch.float64)
    inner = [order - (order - 1) * end[..., None] for end in ends]  # (B, d, orders)
    valid = (inner[1] > 0).all(-2) & (inner[0] > 0).all(-2)
    spread = [
        -part.clamp_min(1e-300).log() / (2 * (order - 1)) - end[..., None].log() / 2
        for part, end in zip(inner, ends, strict=True)
    ]
    mean = order * square / (2 * inner[1].amin(-2).clamp_min(1e-300))
    divergence = mean + torch.maximum(*spread).sum(-2)
    log_failure = (failure.log()[..., None] + divergence) * (order - 1) / order
    log_failure = torch.where(valid, log_failure, 0.0)
    return (log_failure.amin(-1).exp() * (1 + CDF_SLACK)).clamp(max=1)


def _normal_gap(probability: Any, m: float) -> Tensor:
    check_probability(m, "m")
    chance = double(probability)
    gap = torch.special.ndtri(chance) - torch.special.ndtri(double(m))
    return torch.where(chance > m, gap, 0.0)
