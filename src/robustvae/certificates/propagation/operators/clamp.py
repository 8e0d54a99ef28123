"""Activations cut off at fixed values."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.operator import Calls, Kinked, Shape
from robustvae.registry import register


@final
class Clamp(nn.Module):
    """Values kept within [low, high]; either end may be infinite.

    Args:
        low: The least.
        high: The largest.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.propagation.operators.clamp import Clamp
        >>> Clamp(0.0, 1.0)(torch.tensor([-2.0, 0.5, 3.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        """Keep the ends."""
        super().__init__()
        self.low = -math.inf if low is None else float(low)
        self.high = math.inf if high is None else float(high)

    def forward(self, x: Tensor) -> Tensor:
        """The same features, cut off."""
        return x.clamp(self.low, self.high)


def _clamp(*args: float, min: float | None = None, max: float | None = None) -> Clamp:
    ends = [min, max]
    for k, end in enumerate(args):
        ends[k] = end
    return Clamp(*ends)


@register("operator", "clamp")
@final
class Cut(Kinked):
    """x within [low, high], constant beyond."""

    kinds = (nn.Hardtanh, nn.ReLU6, Clamp)
    calls: ClassVar[Calls] = {
        functional.hardtanh: nn.Hardtanh,
        functional.relu6: nn.ReLU6,
        torch.clamp: _clamp,
        "clamp": _clamp,
        "clip": _clamp,
        "clamp_min": lambda low: Clamp(low, None),
        "clamp_max": lambda high: Clamp(None, high),
    }

    def __init__(self, layer: nn.Hardtanh | nn.ReLU6 | Clamp) -> None:
        """Read the ends."""
        super().__init__(layer)
        if isinstance(layer, Clamp):
            self.low, self.high = layer.low, layer.high
        else:
            self.low, self.high = float(layer.min_val), float(layer.max_val)
        # at an infinite end there is no kink: the curve stays a line
        lines = [1.0]
        kinks: list[float] = []
        if math.isfinite(self.low):
            kinks, lines = [self.low], [0.0, 1.0]
        if math.isfinite(self.high):
            kinks, lines = [*kinks, self.high], [*lines, 0.0]
        self.kinks, self.lines = tuple(kinks), tuple(lines)

    def roundings(self, shape: Shape) -> int:
        """The ends may be rounded."""
        return 1

    def is_exact(self, low: Tensor, high: Tensor) -> Tensor:
        """No kink strictly within."""
        if not self.kinks:
            return torch.ones_like(low, dtype=torch.bool)
        return super().is_exact(low, high)

    def value(self, x: Tensor) -> Tensor:
        """x, cut off."""
        return x.clamp(self.low, self.high)


@register("operator", "hard-sigmoid")
@final
class HardSigmoid(Kinked):
    """x / 6 + 1/2 within [-3, 3], 0 and 1 beyond."""

    kinds = (nn.Hardsigmoid,)
    calls: ClassVar[Calls] = {functional.hardsigmoid: nn.Hardsigmoid}
    kinks = (-3.0, 3.0)
    lines = (0.0, 1 / 6, 0.0)
    steepest = 1 / 6

    def roundings(self, shape: Shape) -> int:
        """A quotient and a sum near 1/2."""
        return 8

    def value(self, x: Tensor) -> Tensor:
        """clamp(x / 6 + 1/2, 0, 1)."""
        return (x / 6 + 0.5).clamp(0, 1)

    def doubt(self) -> float:
        """Of x / 6 + 1/2 near 0, where it cancels."""
        return 1e-15
