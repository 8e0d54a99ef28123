"""What a sweep gives: a network over a ball as a linear map plus a bounded remainder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from robustvae.certificates.propagation.numbers import UP
from robustvae.certificates.propagation.rows import Cause
from robustvae.norms import gamma, spectral_norm_bounds

Method = Literal["ibp", "crown-ibp", "crown"]
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")
"""From the cheapest to the tightest."""


@final
@dataclass(frozen=True, eq=False)
class LinearBounds:
    """f(p) - f(x) = slope (p - x) + remainder for every p in the ball around x.

    Attributes:
        value: f(x) as computed, (B, k).
        slope: (B, k, D); None for "ibp".
        low: Lower bounds on the remainder, (B, k).
        high: Upper bounds on the remainder, (B, k).
        lower: Lower bounds on f(p) - f(x) and on f(p) - `value`, (B, k).
        upper: Upper bounds on the same, (B, k).
        causes: For each input, what the remainder is made of: a sum of matrices times vectors.
        radius: Of each ball, (B,).
        norm: "l2" or "linf".
        method: The one that was used, "crown-ibp" where "crown" fell back.
    """

    value: Tensor
    slope: Tensor | None
    low: Tensor
    high: Tensor
    lower: Tensor
    upper: Tensor
    causes: tuple[tuple[Cause, ...], ...]
    radius: Tensor
    norm: str
    method: Method

    def length(self, scale: Tensor) -> Tensor:
        """An upper bound on the l2 norm of scale * (f(p) - f(x)) over the ball, (B,).

        Args:
            scale: Positive weights of the coordinates, (B, k).
        """
        box = (torch.maximum(self.upper, -self.lower) * scale).norm(dim=1) * UP
        box = box.nan_to_num(nan=torch.inf, posinf=torch.inf)
        if self.slope is None or not bool(self.slope.isfinite().all()):
            return box
        remainder = (torch.maximum(self.high, -self.low) * scale).norm(dim=1) * UP
        # each coordinate's causes apart, or each cause as one vector: the smaller holds
        by_cause = [
            sum((cause.length(weights) for cause in causes), 0.0)
            for causes, weights in zip(self.causes, scale, strict=True)
        ]
        remainder = torch.minimum(remainder, torch.as_tensor(by_cause, dtype=torch.float64) * UP)
        linear = self._operator_norm(self.slope * scale[:, :, None])
        total = (linear * self.radius + remainder) * UP
        return torch.minimum(box, total.nan_to_num(nan=torch.inf, posinf=torch.inf))

    def _operator_norm(self, matrices: Tensor) -> Tensor:
        """Bounds on the operator norm from the ball's norm to l2, (B,)."""
        bound = spectral_norm_bounds(matrices) * UP
        if self.norm == "linf":
            # |A s|^2 = sum_ij (A'A)_ij s_i s_j for |s_i| <= 1
            rows = matrices.abs().sum(2).square().sum(1)
            gram = (matrices.mT @ matrices).abs().sum((1, 2))
            gram = gram + gamma(matrices.shape[1] + 8) * rows
            bound = torch.minimum(bound * matrices.shape[2] ** 0.5, gram.sqrt()) * UP
        return bound
