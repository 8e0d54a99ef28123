"""The generalized chi-square: a normal of unequal spreads within a ball."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.bounds.numbers import CDF_SLACK, SLACK, double
from robustvae.bounds.tails import chi_quantile
from robustvae.errors import RangeError, ShapeError

# of t: spreads below it only widen the range that the inversion must cover
_LEAST = 1e-4
_RARE = 1e-12  # far below what is taken off anyway


@checked(formula=True)
def generalized_probability(reach: Any, shifts: Tensor, stddevs: Tensor) -> Tensor:
    """P(sum_j (s_j n_j + D_j)^2 <= t^2), rounded down.

    By Ruben's series where the spreads are alike, which needs few terms then; by inverting the
    characteristic function where they are not. Coordinates of hardly any spread, or of none, are
    taken off t beforehand, by the triangle inequality: what they lie off the center, and what
    nearly all of their draws add.

    Warning:
        It bounds the robustness probability only where `shifts` bounds the mean's movement in
        every coordinate and `stddevs` are exact. A bound on its length alone says nothing about the
        direction, and no single direction is the worst.

    Args:
        reach: t, positive, (B,).
        shifts: D_j >= 0, (B, d).
        stddevs: s_j >= 0, (B, d).

    Returns:
        Lower bounds on the probability, (B,).

    Raises:
        ShapeError: `shifts` and `stddevs` differ in shape or are not (B, d).
        RangeError: One of them is negative or undefined.

    References:
        Ruben, 1962, Eq. 3.8; Farebrother, 1984, algorithm AS 204 (the truncation bound); Imhof,
        1961, and Davies, 1973, for the inversion.

    Examples:
        >>> import torch
        >>> from robustvae.bounds import generalized_probability
        >>> s = torch.tensor([[1.0, 0.314], [1.0, 0.314]])
        >>> shifts = torch.tensor([[1.069, 0.0], [0.0, 1.069]])
        >>> [round(p, 3) for p in generalized_probability(1.378, shifts, s).tolist()]
        [0.599, 0.514]
    """
    shifts, stddevs = double(shifts), double(stddevs)
    if shifts.ndim != 2 or shifts.shape != stddevs.shape:
        raise ShapeError(
            f"shifts and stddevs must be (B, d), got {tuple(shifts.shape)}, {tuple(stddevs.shape)}"
        )
    if not bool((shifts >= 0).all() and (stddevs >= 0).all()):
        raise RangeError("shifts and stddevs must be numbers of at least 0")
    reach = double(reach).expand(len(shifts))
    spreads = stddevs > _LEAST * reach[:, None]
    result = torch.zeros(len(shifts), dtype=torch.float64)
    # rows of as many spreads are computed together
    for count in spreads.sum(1).unique().tolist():
        rows = (spreads.sum(1) == count).nonzero()[:, 0]
        mask = spreads[rows]
        rest, chance = _without_points(reach[rows], shifts[rows], stddevs[rows], mask)
        if count == 0:
            inside = (rest >= 0).double()
        else:
            parts = (part[rows][mask].reshape(-1, count) for part in (shifts, stddevs))
            inside = torch.where(rest > 0, _series(rest.clamp_min(1e-300), *parts), 0.0)
        result[rows] = (inside - chance - CDF_SLACK).clamp(0, 1)
    return result


def _without_points(
    reach: Tensor, shifts: Tensor, stddevs: Tensor, spreads: Tensor
) -> tuple[Tensor, Tensor]:
    """What coordinates of hardly any spread leave of t, (B,), and how often they take more, (B,).

    Args:
        reach: t, (B,).
        shifts: D_j, (B, d).
        stddevs: s_j, (B, d).
        spreads: Which coordinates are not of that kind, (B, d).
    """
    others = [torch.where(spreads, 0.0, part) for part in (shifts, stddevs)]
    center, largest = others[0].norm(dim=1), others[1].amax(1)
    length = largest * chi_quantile(1 - _RARE, shifts.shape[1])
    loss = (center + length) * (1 + SLACK)
    # sqrt(t^2 - loss^2) without the square of a large number; negative where nothing is left
    left = (reach * (1 - SLACK) - loss) * (reach + loss)
    return left.sign() * left.abs().sqrt(), torch.where(largest > 0, _RARE, 0.0)


def _series(reach: Tensor, shifts: Tensor, stddevs: Tensor) -> Tensor:
    """The probability by Ruben's series, by the inversion where that needs too many terms, (B,)."""
    from scipy import special

    variances = stddevs.square()
    noncentral = shifts.square() / variances
    quantile = reach.square() * (1 - SLACK)
    least = variances.amin(1, keepdim=True)
    ratio = least / variances
    log_first = 0.5 * (ratio.log() - noncentral).sum(1)
    x = (quantile / least[:, 0])[:, None]
    latent = shifts.shape[1]
    # c_k = (1 / 2k) sum_{i < k} g_{k-i} c_i, kept scaled by exp(-log_first): all terms positive
    terms = 200  # doubled while mass is missing; equal spreads need fewer
    while True:
        order = torch.arange(1, terms + 1, dtype=torch.float64)
        power = (1 - ratio)[:, :, None] ** (order - 1)
        g = (power * (1 - ratio)[:, :, None]).sum(1)
        g = g + order * (power * (noncentral * ratio)[:, :, None]).sum(1)
        scale = torch.zeros(len(x), dtype=torch.float64)
        stack = torch.zeros(len(x), terms + 1, dtype=torch.float64)
        stack[:, 0] = 1.0
        for k in range(1, terms + 1):
            new = (g[:, :k].flip(1) * stack[:, :k]).sum(1) / (2 * k)
            stack[:, k] = new
            big = new > 1e200  # rescaled long before float64 ends at 1e308
            stack[big] *= 1e-200
            scale = scale + big * 200 * math.log(10)
        weights = stack * (log_first + scale).exp()[:, None]
        degrees = latent + 2 * torch.arange(terms + 1)
        cdf = torch.from_numpy(special.chdtr(degrees.numpy()[None, :], x.numpy()))
        value = (weights * cdf).sum(1)
        left = (1 - weights.sum(1)).clamp_min(0) * cdf[:, -1]
        # beyond 800 terms the inversion is the quicker
        if terms >= 800 or bool((left < 1e-10).all()):
            break
        terms *= 2
    for row in (left >= 1e-10).nonzero()[:, 0].tolist():
        inverse = _inverted_cdf(float(quantile[row]), variances[row], noncentral[row])
        value[row] = max(float(value[row]), inverse)
    return value


def _inverted_cdf(q: float, variances: Tensor, noncentral: Tensor) -> float:
    """P(sum_j v_j chi2_1(l_j) <= q) from below, by the characteristic function at (n + 1/2) step.

    The sum over n misses at most P(Q > q + 2 pi / step), as Q >= 0 and 2 pi / step > q (Davies),
    which Chernoff's inequality bounds; and what lies beyond the last u, where the function is at
    most prod (2 v_j u)^(-1/2) over the v_j with 2 v_j u >= 1, as Imhof has it.

    References:
        Imhof, 1961, Eq. 3.2 and 3.4; Davies, 1973, section 3.
    """
    largest = float(variances.max())
    # of the pole at 1 / (2 v): a coarse grid loses a little of Chernoff's bound, never soundness
    shares = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)[:, None]
    t = shares / (2 * largest)
    less = 1 - 2 * variances * t
    growth = (noncentral * variances * t / less - less.log() / 2).sum(1)

    def beyond(b: float) -> float:
        """P(Q > b)."""
        return float((growth - t[:, 0] * b).amin().exp())

    period = 1.01 * q + largest
    while beyond(q + period) > 1e-11:
        period *= 1.25
    step = 2 * math.pi / period

    def tail(u: float) -> float:
        twice = 2 * variances * u
        outer = twice >= 1
        if not bool(outer.any()):
            return math.inf
        log_size = -(twice[outer].log() / 2).sum() - (twice[~outer].square().log1p() / 4).sum()
        return 2 / (math.pi * int(outer.sum())) * float(log_size.exp())

    count = 64
    # 2^22 terms take a second; what is still missing then is taken off
    while tail(count * step) > 1e-11 and count < 2**22:
        count *= 2
    total = 0.0
    for order in torch.arange(count, dtype=torch.float64).split(2**16):
        u = (order + 0.5) * step
        twice = 2 * variances[:, None] * u
        square = 1 + twice.square()
        # of (1 - 2 i v u)^(-1/2) exp(i l v u / (1 - 2 i v u)): the logarithm's two parts
        size = -(square.log() / 4 + noncentral[:, None] * twice.square() / (2 * square)).sum(0)
        angle = (twice.atan() / 2 + noncentral[:, None] * twice / (2 * square)).sum(0) - u * q
        total += float((size.exp() * angle.sin() / (order + 0.5)).sum())
    losses = beyond(q + period) + tail(count * step) + 1e-15 * count
    return 0.5 - total / math.pi - losses
