"""Activations that multiply x by a gate of x: GELU and SiLU. Their slopes leave [0, 1]."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.operator import Calls, Smooth
from robustvae.certificates.propagation.operators.sigmoid import nearest
from robustvae.errors import UnsupportedError
from robustvae.registry import register


class _Gated(Smooth):
    """phi' rises between -turn and turn and falls outside, from the least to the largest slope."""

    turn: float
    least: float

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """At the ends, and at the turns where these are within."""
        ends = self.derivative(low), self.derivative(high)
        bottom, top = torch.minimum(*ends), torch.maximum(*ends)
        # the turns are known to six digits; granting a thousandth around them costs nothing
        near = 1e-3
        at_bottom = (low <= -self.turn + near) & (high >= -self.turn - near)
        at_top = (low <= self.turn + near) & (high >= self.turn - near)
        return torch.where(at_bottom, self.least, bottom), torch.where(at_top, self.steepest, top)


@register("operator", "gelu")
@final
class GELU(_Gated):
    """x Phi(x), with the normal distribution function; not its approximation by tanh."""

    kinds = (nn.GELU,)
    calls: ClassVar[Calls] = {functional.gelu: nn.GELU}
    # phi'(sqrt 2) = 1.128904...; phi'(-x) = 1 - phi'(x)
    turn, steepest, least = math.sqrt(2), 1.12891, -0.12891
    # x / sqrt 2 is rounded, which erfc multiplies by x^2: 1,444 units where it becomes denormal
    precision = 4e-13
    units = 16  # torch's float32 form, by erf, cancels below 0: 4.6 are seen

    def __init__(self, layer: nn.GELU) -> None:
        """Read which form it is."""
        super().__init__(layer)
        if layer.approximate != "none":
            raise UnsupportedError(
                f"bounds want GELU(approximate='none'), got {layer.approximate!r}"
            )

    def value(self, x: Tensor) -> Tensor:
        """By erfc: 1 + erf cancels far below 0."""
        return x * 0.5 * torch.special.erfc(-x / math.sqrt(2))

    def derivative(self, x: Tensor) -> Tensor:
        """Phi(x) + x phi(x)."""
        density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        # beyond 1e150 the square overflows to infinity, where the density is 0 times infinity
        product = torch.where(x.abs() < 40, x * density, 0.0)
        return 0.5 * torch.special.erfc(-x / math.sqrt(2)) + product

    def curvature(self, low: Tensor, high: Tensor) -> Tensor:
        """|phi''| = density |2 - x^2| <= density (2 + x^2), which falls with |x|."""
        at = nearest(low, high).clamp_max(40)
        density = torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)
        return density * (2 + at.square()) * (1 + 1e-12)


@register("operator", "silu")
@final
class SiLU(_Gated):
    """x s(x), also called swish."""

    kinds = (nn.SiLU,)
    calls: ClassVar[Calls] = {functional.silu: nn.SiLU}
    # phi'(2.39936) = 1.099839...; phi'(-x) = 1 - phi'(x)
    turn, steepest, least = 2.39936, 1.09984, -0.09984
    tail = 12.0

    def value(self, x: Tensor) -> Tensor:
        """x s(x)."""
        return x * torch.sigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        """s (1 + x (1 - s))."""
        gate = torch.sigmoid(x)
        # far out x s(-x) is 0, but computed as infinity times 0
        product = torch.where(x.abs() < 700, x * torch.sigmoid(-x), 0.0)
        return gate * (1 + product)

    def curvature(self, low: Tensor, high: Tensor) -> Tensor:
        """|phi''| = s' |2 + x (1 - 2 s)| <= s' (2 + |x|), below 0.6 and falling from 1 on."""
        at = nearest(low, high)
        beyond = torch.sigmoid(at) * torch.sigmoid(-at) * (2 + at) * (1 + 1e-12)
        return torch.where(at < 1, 0.6, beyond)


@register("operator", "elu")
@final
class ELU(Smooth):
    """x above 0, alpha (exp(x) - 1) below."""

    kinds = (nn.ELU,)
    calls: ClassVar[Calls] = {functional.elu: nn.ELU}
    kinks = (0.0,)

    def __init__(self, layer: nn.ELU) -> None:
        """Read alpha."""
        super().__init__(layer)
        self.alpha = float(layer.alpha)
        if not math.isfinite(self.alpha):
            raise UnsupportedError(f"bounds want an ELU with a finite alpha, got {self.alpha:g}")
        self.steepest = max(1.0, abs(self.alpha))

    def value(self, x: Tensor) -> Tensor:
        """x, or alpha expm1(x) below 0."""
        return torch.where(x > 0, x, self.alpha * torch.expm1(x.clamp_max(0)))

    def derivative(self, x: Tensor) -> Tensor:
        """1, or alpha exp(x) below 0."""
        return torch.where(x > 0, 1.0, self.alpha * torch.exp(x.clamp_max(0)))

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Below 0 monotone, 1 above."""
        ends = [self.alpha * torch.exp(end.clamp_max(0)) for end in (low, high)]
        below = low <= 0
        least = torch.where(below, torch.minimum(*ends), 1.0)
        greatest = torch.where(below, torch.maximum(*ends), 1.0)
        above = high >= 0
        least = torch.where(above, least.clamp_max(1.0), least)
        return least, torch.where(above, greatest.clamp_min(1.0), greatest)

    def curvature(self, low: Tensor, high: Tensor) -> Tensor:
        """|alpha| exp(x) below 0, nothing above."""
        return torch.where(low < 0, abs(self.alpha) * torch.exp(high.clamp_max(0)), 0.0)
