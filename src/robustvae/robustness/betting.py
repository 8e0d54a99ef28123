"""A sequential test that a probability is at most m: valid whenever it is stopped.

An observation X in [0, 1] has mean P: whether one draw stays within r, or the share of an
antithetic pair that does. A gambler who bets that P is below m multiplies capital 1 by
1 + l (m - X) at each observation. If P >= m the capital is a supermartingale for every stake l in
[0, 1 / (1 - m)], so it ever reaches 1 / risk with probability at most `risk` (Ville). The mean of
the capitals of several stakes is one again: no stake has to be chosen. Pairs whose members err in
opposite directions hardly vary, which the capital, unlike a Clopper-Pearson bound, turns to profit.

References:
    Waudby-Smith & Ramdas, 2024 (Estimating means of bounded random variables by betting).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_STAKES = (0.05, 0.15, 0.35, 0.65, 0.95)  # shares of the largest stake: from many draws to few


def log_capitals(x: Tensor, m: float) -> Tensor:
    """Log capital of each stake after each observation, (stakes, N, ...), of (N, ...)."""
    stakes = torch.tensor(_STAKES, dtype=torch.float64, device=x.device) / (1 - m)
    edge = m - x.double()
    return torch.log1p(stakes.view(-1, *(1,) * x.ndim) * edge).cumsum(1)


def capital(logs: Tensor) -> Tensor:
    """Log of the mean capital over the stakes, of (stakes, ...)."""
    return torch.logsumexp(logs, 0) - math.log(len(_STAKES))


def growth(both: Tensor, one: Tensor, none: Tensor, m: float) -> Tensor:
    """Log capital by which a pair of draws raises the best stake, by counts of pairs.

    One more pair that stayed within is counted: few draws must not promise much.

    Args:
        both: Pairs of which both draws stayed within r.
        one: Pairs of which one did; 0 of single draws.
        none: Pairs of which none did.
        m: Probability in (0, 1).
    """
    best = torch.full(both.shape, -math.inf, dtype=torch.float64, device=both.device)
    for share in _STAKES:
        stake = share / (1 - m)
        gain = (
            none * math.log1p(stake * m)
            + one * math.log1p(stake * (m - 0.5))
            + (both + 1) * math.log1p(stake * (m - 1))
        )
        best = torch.maximum(best, gain.double() / (both + one + none + 1))
    return best


def upper_bound(x: Tensor, risk: float) -> Tensor:
    """The least m that the test rejects at this risk, of (N, ...): a bound on P from above."""
    low, high = x.double().mean(0).clamp(1e-6, 1 - 1e-6), torch.ones_like(x[0], dtype=torch.float64)
    stakes = torch.tensor(_STAKES, dtype=torch.float64, device=x.device)
    for _ in range(30):
        middle = (low + high) / 2
        scaled = stakes.view(-1, *(1,) * middle.ndim) / (1 - middle)
        logs = torch.log1p(scaled.unsqueeze(1) * (middle - x.double())).cumsum(1)
        rejections = capital(logs).amax(0) >= -math.log(risk)
        low, high = torch.where(rejections, low, middle), torch.where(rejections, middle, high)
    return high
