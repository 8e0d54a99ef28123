"""The sigmoid and its relatives by scaling and integration: tanh and softplus."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.operator import Calls, Smooth
from robustvae.errors import UnsupportedError
from robustvae.registry import register

# max |phi''| of the sigmoid is sqrt(3) / 18 = 0.09622..., at |x| = 1.3169...; of tanh 4 / 3^1.5 =
# 0.76980..., at |x| = 0.6584...; both fall towards 0 from there on.
_SIGMOID_CURVE, _SIGMOID_TURN = 0.09623, 1.317
_TANH_CURVE, _TANH_TURN = 0.76981, 0.6585


def nearest(low: Tensor, high: Tensor) -> Tensor:
    """The least |x| in [low, high]."""
    return torch.where(low * high <= 0, 0.0, torch.minimum(low.abs(), high.abs()))


@register("operator", "sigmoid")
@final
class Sigmoid(Smooth):
    """1 / (1 + exp(-x))."""

    kinds = (nn.Sigmoid,)
    calls: ClassVar[Calls] = {
        functional.sigmoid: nn.Sigmoid,
        torch.sigmoid: nn.Sigmoid,
        "sigmoid": nn.Sigmoid,
    }
    steepest = 0.25
    tail = 12.0  # beyond, it is flat to 7e-6: the pieces are laid within

    def value(self, x: Tensor) -> Tensor:
        """1 / (1 + exp(-x))."""
        return torch.sigmoid(x)

    def derivative(self, x: Tensor) -> Tensor:
        """By two images: 1 - s would cancel where it saturates."""
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """They fall with |x|."""
        far = torch.maximum(low.abs(), high.abs())
        return self.derivative(far), self.derivative(nearest(low, high))

    def curvature(self, low: Tensor, high: Tensor) -> Tensor:
        """|s''| = s' |1 - 2 s| falls beyond its maximum."""
        at = nearest(low, high)
        beyond = self.derivative(at) * (1 - 2 * torch.sigmoid(-at))
        return torch.where(at < _SIGMOID_TURN, _SIGMOID_CURVE, beyond * (1 + 1e-12))


@register("operator", "tanh")
@final
class Tanh(Smooth):
    """tanh(x)."""

    kinds = (nn.Tanh,)
    calls: ClassVar[Calls] = {functional.tanh: nn.Tanh, torch.tanh: nn.Tanh, "tanh": nn.Tanh}
    tail = 6.0

    def value(self, x: Tensor) -> Tensor:
        """tanh(x)."""
        return torch.tanh(x)

    def derivative(self, x: Tensor) -> Tensor:
        """4 s(2x) s(-2x): 1 - tanh^2 would cancel where it saturates."""
        return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """They fall with |x|."""
        far = torch.maximum(low.abs(), high.abs())
        return self.derivative(far), self.derivative(nearest(low, high))

    def curvature(self, low: Tensor, high: Tensor) -> Tensor:
        """|tanh''| = 2 |tanh| tanh' falls beyond its maximum."""
        at = nearest(low, high)
        beyond = 2 * at.tanh() * self.derivative(at) * (1 + 1e-12)
        return torch.where(at < _TANH_TURN, _TANH_CURVE, beyond)


@register("operator", "softplus")
@final
class Softplus(Smooth):
    """log(1 + exp(beta x)) / beta, as torch computes it: a line beyond a threshold."""

    kinds = (nn.Softplus,)
    calls: ClassVar[Calls] = {functional.softplus: nn.Softplus}
    # beta x is rounded, which exp multiplies by beta x: 745 units where it becomes denormal
    precision = 2e-13

    def __init__(self, layer: nn.Softplus) -> None:
        """Read beta and the threshold."""
        super().__init__(layer)
        self.beta, self.threshold = float(layer.beta), float(layer.threshold)
        if not (0 < self.beta < math.inf):
            raise UnsupportedError(f"bounds want a Softplus with beta > 0, got {self.beta:g}")
        # the step to the line; such a jump has no slope
        self.jump = math.log1p(math.exp(-self.threshold)) / self.beta
        self.tail = 12.0 / self.beta

    def lipschitz(self, shape: tuple[int, ...]) -> float:
        """1, where torch's step to the line is lost in rounding."""
        if not self.jump <= 1e-8:
            raise UnsupportedError(
                f"Softplus(beta={self.beta:g}, threshold={self.threshold:g}) jumps at its "
                "threshold; use a threshold of at least 20"
            )
        return 1.0

    def value(self, x: Tensor) -> Tensor:
        """The exact one; `doubt` has torch's step."""
        return torch.logaddexp(torch.zeros_like(x), self.beta * x) / self.beta

    def doubt(self) -> float:
        """Torch takes the line beyond its threshold, which is below the curve by `jump` there."""
        return 2 * self.jump

    def derivative(self, x: Tensor) -> Tensor:
        """s(beta x)."""
        return torch.sigmoid(self.beta * x)

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """They grow."""
        return self.derivative(low), self.derivative(high)

    def curvature(self, low: Tensor, high: Tensor) -> Tensor:
        """beta s' falls with |x|."""
        at = self.beta * nearest(low, high)
        return self.beta * torch.sigmoid(at) * torch.sigmoid(-at) * (1 + 1e-12)
