"""The bound formulas of the certificates, on latent quantities, in float64.

Letters: `reach` t is the latent distance that the output bound allows (r / a, or more), `shift` D
how far the posterior's mean can move, `spread` s the largest standard deviation of the latent
difference, `total` T the sum of its variances. All are (B,) or numbers and broadcast.
Every probability here is a lower bound on P(||z - z'|| <= t), so on the robustness probability;
every margin is rounded towards safety. Probabilities are differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from robustvae.errors import (
    RangeError,
    ShapeError,
    check_choice,
    check_count,
    check_positive,
    check_probability,
)

CDF_SLACK = 1e-9
"""Taken off every noncentral chi-square probability; the routine's own error is near 1e-14."""

SLACK = 1e-12
"""Relative slack for a few float64 operations, far above their rounding."""


def largest(holds: Callable[[Tensor], Tensor], upper: Tensor, steps: int = 36) -> Tensor:
    """The largest radius at which `holds` was seen to hold, by bisection in batch.

    Args:
        holds: Radii (B,) to booleans (B,); false above some radius and true below it.
        upper: Radii above which it does not hold or is not asked, (B,).
        steps: Halvings; the answer is below the true one by at most `upper` / 2**steps.

    Returns:
        Radii, (B,): one at which `holds` returned true, or 0.

    Examples:
        >>> import torch
        >>> from robustvae.bounds import largest
        >>> edge = torch.tensor([0.3, 2.0])
        >>> found = largest(lambda rho: rho <= edge, torch.ones(2))
        >>> bool(0.3 - 1e-6 < found[0] <= 0.3), float(found[1])
        (True, 1.0)
    """
    high = upper.clone()
    low = torch.zeros_like(high)
    holds_above = holds(high)
    low = torch.where(holds_above, high, low)
    for _ in range(steps):
        middle = (low + high) / 2
        holds_there = holds(middle)
        low = torch.where(holds_there, middle, low)
        high = torch.where(holds_there, high, middle)
    return low


def crossing(
    value: Callable[[Tensor, Tensor], Tensor], upper: Tensor, guess: Tensor | None = None
) -> Tensor:
    """As `largest` for what falls smoothly: where a value crosses 0, in a third of the questions.

    False position with the Illinois rule; every fourth step halves, so that a jump does no harm.
    Rows that are done are asked no more.

    Args:
        value: Radii (n,) and their rows (n,) to numbers (n,), above 0 where it holds.
        upper: Radii above which it is not asked, (B,).
        guess: Radii near the crossing, (B,); a bad one costs questions, no more.

    Returns:
        Radii, (B,): one at which the value was above 0, or 0; below the crossing by at most about
        4e-10 of `upper`.

    Examples:
        >>> import torch
        >>> from robustvae.bounds import crossing
        >>> edge = torch.tensor([0.3, 2.0], dtype=torch.float64)
        >>> found = crossing(lambda rho, rows: edge[rows] - rho, torch.ones(2).double())
        >>> bool(0.3 - 1e-9 < found[0] <= 0.3), float(found[1])
        (True, 1.0)
    """
    root, rows = torch.zeros_like(upper), torch.arange(len(upper), device=upper.device)
    low, high = torch.zeros_like(upper), upper.clone()
    above, below = torch.full_like(upper, math.nan), torch.full_like(upper, math.nan)
    for at in () if guess is None else (guess * (1 - 2e-5), guess * (1 + 2e-5)):
        at = torch.minimum(at.clamp_min(0), upper)
        height = value(at, rows)
        low, above = torch.where(height > 0, at, low), torch.where(height > 0, height, above)
        first = (height <= 0) & below.isnan()
        high, below = torch.where(first, at, high), torch.where(first, height, below)
    for ends, values in ((low, above), (high, below)):
        unknown = values.isnan().nonzero()[:, 0]
        if len(unknown):
            values[unknown] = value(ends[unknown], unknown)
    root = torch.where(below > 0, upper, torch.where(above > 0, low, 0.0))
    keep = (above > 0) & (below <= 0)
    rows, low, high, above, below = rows[keep], low[keep], high[keep], above[keep], below[keep]
    side = torch.zeros_like(above)
    for step in range(1, 61):
        if not len(rows):
            break
        width = 1e-10 * upper[rows]
        middle = low + (high - low) * (above / (above - below))
        # a step to either side of the guess closes the bracket once the guess is good
        middle = torch.where(side > 0, middle + width, middle - width)
        if step % 4 == 0:
            middle = (low + high) / 2
        middle = torch.maximum(torch.minimum(middle, high), low)
        height = value(middle, rows)
        is_positive = height > 0
        below = torch.where(is_positive & (side > 0), below / 2, below)
        above = torch.where(~is_positive & (side < 0), above / 2, above)
        low, above = torch.where(is_positive, middle, low), torch.where(is_positive, height, above)
        high, below = (
            torch.where(is_positive, high, middle),
            torch.where(is_positive, below, height),
        )
        side = torch.where(is_positive, 1.0, -1.0).to(side)
        root[rows] = low
        keep = high - low > 4 * width
        rows, low, high, side = rows[keep], low[keep], high[keep], side[keep]
        above, below = above[keep], below[keep]
    return root


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
    size, stddev_norm = _double(size), _double(stddev_norm)
    spread = c * size + 2 * stddev_norm
    p1 = markov_failure(r / a, b * size, spread.square())
    p2 = tail_failure(r / a, b * size, spread, latent)
    return 1 - torch.minimum(p1, p2)


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
    norm = _double(stddev_norm)
    left = (1 - m) * r**2 / a**2 - 4 * norm.square()
    square = b**2 + c**2
    root = (4 * c**2 * norm.square() + square * left).clamp_min(0).sqrt()
    m1 = torch.where(left > 0, (root - 2 * c * norm) / square, 0.0).clamp_min(0)

    def holds(rho: Tensor) -> Tensor:
        return tail_failure(r / a, b * rho, c * rho + 2 * norm, latent) <= 1 - m

    return torch.maximum(m1, largest(holds, torch.full_like(norm, r / a / b)))


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


def markov_failure(reach: Any, shift: Any, total: Any) -> Tensor:
    """min(1, (D^2 + T) / t^2), Markov's bound on P(||z - z'|| > t); with T = sum s_j^2 it is ours.

    References:
        [Barrett22] Theorem 1, p1 (there T = s^2); docs/theory.md, "Trace-Markov".
    """
    ratio = (_double(shift).square() + _double(total)) / _double(reach).square()
    return (ratio * (1 + SLACK)).clamp(max=1)


def tail_failure(reach: Any, shift: Any, spread: Any, latent: int) -> Tensor:
    """[Barrett22]'s p2: a chi-square's tail beyond u = (t - D)^2 / s^2, 1 where that says nothing.

    References:
        [Barrett22] Theorem 1, p2; Inglot, 2010, Theorem 4.1.
    """
    gap = _double(reach) - _double(shift)
    u = gap.square() / _double(spread).square()
    excess = u - latent + 2
    valid = (gap > 0) & (excess > 0) & (latent >= 2)
    safe = torch.where(valid, u, float(latent))
    constant = 0.5 * (latent - (latent - 1) * math.log(latent)) - 0.5 * math.log(math.pi)
    log_tail = constant + latent / 2 * safe.log() - safe / 2 - (safe - latent + 2).log()
    return torch.where(valid, log_tail.clamp(max=0).exp(), 1.0)


def noncentral_probability(reach: Any, shift: Any, spread: Any, latent: int) -> Tensor:
    """F(t^2/s^2; d, D^2/s^2), the noncentral chi-square's CDF, where it is at least 1/2.

    A normal difference with standard deviations at most s in every coordinate and mean within D
    stays within t at least this often (ours). Below 1/2 the statement is false: there the central
    chi-square's CDF at (t - D)^2 / s^2 stands, by the triangle inequality alone.

    Args:
        reach: t, positive, (B,).
        shift: D, at least 0, (B,).
        spread: s, positive, (B,).
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

    reach, shift, spread = _double(reach), _double(shift), _double(spread)
    for part in (reach, shift, spread):
        if not bool((part >= 0).all()):
            raise RangeError("reach, shift and spread must be numbers of at least 0")
    value = isotropic_mass(reach, shift, spread, latent)
    gap = ((reach - shift).clamp_min(0) / spread).detach().square() * (1 - SLACK)
    central = torch.as_tensor(special.chdtr(latent, gap.cpu().numpy())).to(value.device)
    return torch.where(value >= 0.5, value, (central - CDF_SLACK).clamp_min(0))


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
    quantile = torch.special.ndtri(_double(m))

    def holds(rho: Tensor) -> Tensor:
        displacement, spread = shift(rho)
        x, lam = (reach / spread).square(), (displacement / spread).square()
        mean, second = latent + lam, latent + 2 * lam
        h = 1 - 2 / 3 * mean * (latent + 3 * lam) / second.square()
        p = second / mean.square()
        q = (h - 1) * (1 - 3 * h)
        center = 1 + h * p * (h - 1 - 0.5 * (2 - h) * q * p)
        return ((x / mean) ** h - center) / (h * (2 * p).sqrt() * (1 + 0.5 * q * p)) > quantile

    return largest(holds, reach / shift(torch.ones_like(reach))[0], steps=24)


def isotropic_mass(reach: Any, shift: Any, spread: Any, latent: int) -> Tensor:
    """F(t^2/s^2; d, D^2/s^2), rounded down: smooth, but of unequal spreads no bound below 1/2.

    Examples:
        >>> from robustvae.bounds import isotropic_mass
        >>> round(float(isotropic_mass(2.0, 1.0, 0.5, 10)), 4)
        0.675
    """
    reach, shift, spread = _double(reach), _double(shift), _double(spread)
    mass = _noncentral_cdf(
        (reach / spread).square() * (1 - SLACK),
        (shift / spread).square() * (1 + SLACK),
        latent,
    )
    return mass - CDF_SLACK


def trace_markov_probability(reach: Any, shift: Any, total: Any) -> Tensor:
    """1 - (D^2 + T) / t^2, or 0: needs only the sum T of the variances, and holds at any m (ours).

    Examples:
        >>> from robustvae.bounds import trace_markov_probability
        >>> round(float(trace_markov_probability(1.0, 0.5, 0.25)), 6)
        0.5
    """
    return 1 - markov_failure(reach, shift, total)


def generalized_probability(reach: Any, shifts: Tensor, stddevs: Tensor) -> Tensor:
    """P(sum_j (s_j n_j + D_j)^2 <= t^2), rounded down.

    By Ruben's series where the spreads are alike, which needs few terms then; by inverting the
    characteristic function where they are not.

    Warning:
        It bounds the robustness probability only where `shifts` bounds the mean's movement in
        every coordinate and `stddevs` are exact. A bound on its length alone says nothing about the
        direction, and no single direction is the worst.

    Args:
        reach: t, positive, (B,).
        shifts: D_j >= 0, (B, d).
        stddevs: s_j > 0, (B, d).

    Returns:
        Lower bounds on the probability, (B,).

    Raises:
        ShapeError: `shifts` and `stddevs` differ in shape or are not (B, d).

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
    shifts, stddevs = _double(shifts), _double(stddevs)
    if shifts.ndim != 2 or shifts.shape != stddevs.shape:
        raise ShapeError(
            f"shifts and stddevs must be (B, d), got {tuple(shifts.shape)}, {tuple(stddevs.shape)}"
        )
    from scipy import special

    variances = stddevs.square()
    noncentral = shifts.square() / variances
    quantile = _double(reach).square().expand(len(shifts)) * (1 - SLACK)
    least = variances.amin(1, keepdim=True)
    ratio = least / variances
    log_first = 0.5 * (ratio.log() - noncentral).sum(1)
    x = (quantile / least[:, 0])[:, None]
    latent = shifts.shape[1]
    # c_k = (1 / 2k) sum_{i < k} g_{k-i} c_i, kept scaled by exp(-log_first): all terms positive
    terms = 200
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
            big = new > 1e200
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
        inverted = _inverted_cdf(float(quantile[row]), variances[row], noncentral[row])
        value[row] = max(float(value[row]), inverted)
    return (value - CDF_SLACK).clamp(0, 1)


def _inverted_cdf(q: float, variances: Tensor, noncentral: Tensor) -> float:
    """P(sum_j v_j chi2_1(l_j) <= q) from below, by the characteristic function at (n + 1/2) step.

    The sum over n misses at most P(Q > q + 2 pi / step), as Q >= 0 and 2 pi / step > q (Davies),
    which Chernoff's inequality bounds; and what lies beyond the last u, where the function is at
    most prod (2 v_j u)^(-1/2) over the v_j with 2 v_j u >= 1, as Imhof has it.

    References:
        Imhof, 1961, Eq. 3.2 and 3.4; Davies, 1973, section 3.
    """
    largest = float(variances.max())
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
    lost = beyond(q + period) + tail(count * step) + 1e-15 * count
    return 0.5 - total / math.pi - lost


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
    scaled = _double(jacobian) / _double(stddev)[:, :, None]
    return _normal_gap(probability, m) / torch.linalg.matrix_norm(scaled, ord=2)


def spectral_margin(probability: Any, m: float, jacobian: Tensor, stddev: Tensor) -> Tensor:
    """sigma_min (Phi^-1(p) - Phi^-1(m)) / ||J||_2, between the other two; same arguments.

    References:
        docs/theory.md, "First order".
    """
    least = _double(stddev).amin(1)
    return least * _normal_gap(probability, m) / torch.linalg.matrix_norm(_double(jacobian), ord=2)


def camuto_margin(probability: Any, m: float, jacobian: Tensor, stddev: Tensor) -> Tensor:
    """[Camuto21]'s first-order margin sigma_min (Phi^-1(p) - Phi^-1(m)) / ||J||_F; same arguments.

    References:
        [Camuto21] Theorem 1.
    """
    least = _double(stddev).amin(1)
    return least * _normal_gap(probability, m) / torch.linalg.matrix_norm(_double(jacobian))


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


def moved_failure(failure: Any, shift: Any, stddev: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """How often an event can fail once mean and standard deviation have moved (ours).

    (e^{D_a} f)^{(a-1)/a}, the least over orders a > 1, with D_a the Renyi divergence of the moved
    normal from the first: by Hoelder's inequality. At a fixed standard deviation
    `neyman_pearson_shift` is sharper.

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
        (0.01, 0.186)
    """
    stddev = _double(stddev)
    ends = [(_double(end) / stddev).square() for end in (least, most)]
    square = _double(shift).square()[..., None]
    order = 1 + torch.logspace(-2, 3, 200, dtype=torch.float64)
    inner = [order - (order - 1) * end[..., None] for end in ends]  # (B, d, orders)
    valid = (inner[1] > 0).all(-2) & (inner[0] > 0).all(-2)
    spread = [
        -part.clamp_min(1e-300).log() / (2 * (order - 1)) - end[..., None].log() / 2
        for part, end in zip(inner, ends, strict=True)
    ]
    mean = order * square / (2 * inner[1].amin(-2).clamp_min(1e-300))
    divergence = mean + torch.maximum(*spread).sum(-2)
    log_failure = (_double(failure).log()[..., None] + divergence) * (order - 1) / order
    log_failure = torch.where(valid, log_failure, 0.0)
    return (log_failure.amin(-1).exp() * (1 + CDF_SLACK)).clamp(max=1)


def envelope_reach(logits: Tensor, r: float | Tensor) -> Tensor:
    """How far the decoder's logits must move, in l2, before their sigmoids move by r (ours).

    The largest q with max_{||e|| <= q} sum_i (s(y_i + e_i) - s(y_i))^2 <= r^2, from below by weak
    duality: q^2 >= (r^2 - sum_i h(y_i, l)) / l for every l > 0, where
    h(y, l) = max_e (s(y + e) - s(y))^2 - l e^2 is bounded above. Never below 4 r.

    Args:
        logits: y at the clean latent, (B, D).
        r: l2 distance between outputs, positive; one, or one for each row, (B,).

    Returns:
        Distances in logit space, (B,).

    References:
        docs/theory.md, "Envelope".

    Examples:
        >>> import torch
        >>> from robustvae.bounds import envelope_reach
        >>> gray, black = torch.zeros(1, 4), torch.full((1, 4), -6.0)
        >>> bool(envelope_reach(black, 0.4) > 1.5 * envelope_reach(gray, 0.4))
        True
    """
    check_positive(r, "r", each=True)
    if logits.ndim != 2:
        raise ShapeError(f"logits must be (B, D), got {tuple(logits.shape)}")
    multipliers, table = _envelope_table()
    position = _double(logits.detach()).abs().clamp(max=_TOP) / _STEP
    cell = position.floor().clamp(max=table.shape[0] - 2).long()
    part = position - cell
    r = _double(r).expand(len(logits))
    best = 4 * r * (1 - SLACK)
    for k, multiplier in enumerate(multipliers.tolist()):
        column = table[:, k]
        h = torch.lerp(column[cell], column[cell + 1], part) + _BETWEEN
        left = r**2 * (1 - SLACK) - h.sum(1) * (1 + SLACK)
        best = torch.maximum(best, (left.clamp_min(0) / multiplier).sqrt() * (1 - SLACK))
    return best


_TOP, _STEP, _MULTIPLIERS = 30.0, 0.02, 48
# |d2/dy2 of (s(y+e) - s(y))^2| >= -2 max|s''| 2 max|D s| with max|s''| < 0.0963, so a chord lies
# at most 0.386 step^2 / 8 below the curve; 1e-12 more covers |y| > _TOP and rounding.
_BETWEEN = 0.386 * _STEP**2 / 8 + 1e-12
_TABLE: list[tuple[Tensor, Tensor]] = []


def _envelope_table() -> tuple[Tensor, Tensor]:
    """Upper bounds on h(y, l) at y = 0, step, ..., top, (n, L), and the multipliers l, (L,).

    y >= 0 stands for both signs, and the best e is negative: the slope is larger towards 0. On a
    cell of width w around e: f <= f(e) + |f'(e)| w/2 + M w^2/8 with M = 0.32 > max f''.
    """
    if not _TABLE:
        multipliers = torch.logspace(-4.5, math.log10(1 / 16), _MULTIPLIERS, dtype=torch.float64)
        y = torch.arange(0, _TOP + _STEP, _STEP, dtype=torch.float64)[:, None]
        width = 0.05
        e = torch.arange(width / 2, 2 * _TOP, width, dtype=torch.float64)[None, :]
        start, end = torch.sigmoid(y), torch.sigmoid(y - e)
        change = start - end
        value = change.square() + 0.32 * width**2 / 8 + 1e-12
        slope = 2 * change * end * (1 - end)
        columns = []
        for multiplier in multipliers.tolist():
            # beyond e = l^-1/2 the bracket is negative, as the change is at most 1
            cells = min(e.shape[1], math.ceil(multiplier**-0.5 / width) + 1)
            near = e[:, :cells]
            bound = value[:, :cells] - multiplier * near.square()
            bound += (slope[:, :cells] - 2 * multiplier * near).abs() * (width / 2)
            columns.append(bound.amax(1).clamp_min(0))
        _TABLE.append((multipliers, torch.stack(columns, 1)))
    return _TABLE[0]


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
    return float(special.chdtri(latent, 1 - chance)) ** 0.5 * (1 + 1e-6)


def _normal_gap(probability: Any, m: float) -> Tensor:
    check_probability(m, "m")
    chance = _double(probability)
    gap = torch.special.ndtri(chance) - torch.special.ndtri(_double(m))
    return torch.where(chance > m, gap, 0.0)


def _double(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(torch.float64)
    return torch.as_tensor(value, dtype=torch.float64)


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
