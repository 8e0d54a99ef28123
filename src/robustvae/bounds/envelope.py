"""How far logits must move before their sigmoids do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.bounds.numbers import SLACK, double, slack
from robustvae.errors import ShapeError, check_positive


@checked(formula=True)
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
    position = double(logits.detach()).abs().clamp(max=_TOP) / _STEP
    cell = position.floor().clamp(max=table.shape[0] - 2).long()
    part = position - cell
    r = double(r).expand(len(logits))
    best = 4 * r * (1 - SLACK)

    def distance(k: Tensor) -> Tensor:
        """By one multiplier for each row."""
        place = k[:, None] * table.shape[0] + cell
        h = torch.lerp(columns[place], columns[place + 1], part) + _BETWEEN
        left = r**2 * (1 - SLACK) - h.sum(1) * (1 + slack(h.shape[1]))
        return (left.clamp_min(0) / multipliers[k]).sqrt() * (1 - SLACK)

    columns = table.mT.flatten()
    # it rises and falls along the multipliers: the best of a few, then of its neighbors
    coarse = torch.arange(_APART // 2, _MULTIPLIERS, _APART)[:, None].expand(-1, len(logits))
    values = torch.stack([distance(k) for k in coarse])
    most, place = values.max(0)
    best = torch.maximum(best, most)
    for step in range(1, _APART):
        for k in (coarse[0] + _APART * place - step, coarse[0] + _APART * place + step):
            best = torch.maximum(best, distance(k.clamp(0, _MULTIPLIERS - 1)))
    return best


_TOP, _STEP, _MULTIPLIERS, _APART = 30.0, 0.02, 48, 4
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
        # each column lies in one piece, so that it fits a cache
        _TABLE.append((multipliers, torch.stack(columns).mT))
    return _TABLE[0]
