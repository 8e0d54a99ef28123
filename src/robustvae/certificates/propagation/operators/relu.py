"""Rectifiers: lines that meet at 0."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.operator import Builder, Calls, Kinked, Shape
from robustvae.errors import NonFiniteError
from robustvae.registry import register


@register("operator", "relu")
@final
class Rectifier(Kinked):
    """max(x, 0)."""

    kinds = (nn.ReLU,)
    calls: ClassVar[Calls] = {functional.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU}
    lines = (0.0, 1.0)

    def value(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return x.clamp_min(0)


@register("operator", "leaky-relu")
@final
class LeakyRectifier(Kinked):
    """x above 0, a multiple of it below."""

    kinds = (nn.LeakyReLU,)
    calls: ClassVar[Calls] = {functional.leaky_relu: nn.LeakyReLU}

    def __init__(self, layer: nn.LeakyReLU) -> None:
        """Read the slope below 0."""
        super().__init__(layer)
        self.lines = (float(layer.negative_slope), 1.0)
        self.steepest = max(1.0, abs(layer.negative_slope))
        if not math.isfinite(self.steepest):
            raise NonFiniteError("the slope of a LeakyReLU must be finite")

    def roundings(self, shape: Shape) -> int:
        """The slope, which may be rounded, and the product."""
        return 2

    def value(self, x: Tensor) -> Tensor:
        """x, or slope x below 0."""
        return torch.where(x > 0, x, x * self.lines[0])


@register("operator", "prelu")
@final
class ParametricRectifier(Kinked):
    """x above 0, a learned multiple of it below, one for all or one a channel."""

    kinds = (nn.PReLU,)

    def __init__(self, layer: nn.PReLU) -> None:
        """Read the slopes below 0."""
        super().__init__(layer)
        self.below = layer.weight.detach().double().cpu()
        if not bool(self.below.isfinite().all()):
            raise NonFiniteError("weights must be finite, got a NaN or an infinity in a PReLU")
        self.lines = (self.below, 1.0)
        self.steepest = max(1.0, float(self.below.abs().max()))

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One step; the slopes lie along the channels."""
        shape: Shape = network.shape(reads[0])
        if self.below.numel() > 1:  # one slope a channel: broadcast over the other axes
            self.below = self.below.view(-1, *[1] * (len(shape) - 1))
            self.lines = (self.below, 1.0)
        return super().build(network, reads)

    def roundings(self, shape: Shape) -> int:
        """The slope, which may be rounded, and the product."""
        return 2

    def value(self, x: Tensor) -> Tensor:
        """x, or slope x below 0."""
        return torch.where(x > 0, x, x * self.below)


RECTIFIER = Rectifier(nn.ReLU())
"""What exchanges of pairs and largest values are made with."""
