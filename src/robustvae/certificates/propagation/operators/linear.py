"""Dense layers, and features times numbers."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from robustvae.certificates.propagation.affine import dense_step, scaling_step
from robustvae.certificates.propagation.graph import Affine
from robustvae.certificates.propagation.operator import Builder, Operator, Shape
from robustvae.errors import NonFiniteError, ShapeError, UnsupportedError
from robustvae.models.lipschitz import Scale
from robustvae.norms import spectral_norm_bound
from robustvae.registry import register


@register("operator", "linear")
@final
class Dense(Operator):
    """W x + b on the last axis."""

    kinds = (nn.Linear,)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One affine step."""
        (node,) = reads
        shape = network.shape(node)
        if not shape or shape[-1] != self.layer.weight.shape[1]:
            raise ShapeError(
                f"a Linear wants {self.layer.weight.shape[1]} features, got the shape {shape}"
            )
        step = dense_step(self.layer.weight, self.layer.bias, node, shape)
        return network.append(step, (*shape[:-1], len(self.layer.weight)))

    def roundings(self, shape: Shape) -> int:
        """Products, their sum, the bias."""
        return int(self.layer.weight.shape[1]) + 2

    def lipschitz(self, shape: Shape) -> float:
        """The verified spectral norm."""
        return spectral_norm_bound(self.layer.weight)


@register("operator", "scale")
@final
class Scaling(Operator):
    """factor x + shift, by numbers."""

    kinds = (Scale, Affine)

    def __init__(self, layer: Scale | Affine) -> None:
        """Read the numbers."""
        super().__init__(layer)
        self.factor = torch.tensor(float(layer.factor), dtype=torch.float64)
        shift = layer.shift if isinstance(layer, Affine) else 0.0
        self.shift = torch.tensor(float(shift), dtype=torch.float64)
        if not bool(self.factor.isfinite() & self.shift.isfinite()):
            raise NonFiniteError(f"the numbers of a {type(layer).__name__} must be finite")

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One affine step."""
        (node,) = reads
        shape = network.shape(node)
        return network.append(scaling_step(self.factor, self.shift, node, shape), shape)

    def roundings(self, shape: Shape) -> int:
        """The factor itself, the product, the sum."""
        return 3

    def lipschitz(self, shape: Shape) -> float:
        """The factor's size."""
        return abs(float(self.factor))


@register("operator", "batch-norm")
@final
class BatchNorm(Operator):
    """Batch norm in evaluation mode: each channel times a factor, and shifted."""

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)

    def __init__(self, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        """Read the running statistics.

        Raises:
            UnsupportedError: No running statistics: the layer then mixes its inputs.
        """
        super().__init__(layer)
        if layer.running_var is None or layer.running_mean is None:
            raise UnsupportedError(
                f"{type(layer).__name__} without running statistics mixes the inputs of a batch; "
                "use track_running_stats=True"
            )
        # in float64: folded in float32 the factor would lose what the bounds need
        mean, variance = (t.double().cpu() for t in (layer.running_mean, layer.running_var))
        self.factor = (variance + layer.eps).rsqrt()
        if layer.weight is not None:
            self.factor = self.factor * layer.weight.detach().double().cpu()
        self.bias = -mean * self.factor
        if layer.bias is not None:
            self.bias = self.bias + layer.bias.detach().double().cpu()
        if not bool((self.factor.isfinite() & self.bias.isfinite()).all()):
            raise NonFiniteError("the statistics and weights of a batch norm must be finite")

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One affine step."""
        (node,) = reads
        shape = network.shape(node)
        axes = 3 if isinstance(self.layer, nn.BatchNorm2d) else len(shape)
        if len(shape) != axes or shape[0] != len(self.factor):
            raise ShapeError(
                f"batch norm needs features of {len(self.factor)} channels, got shape {shape}"
            )
        ones = [1] * (len(shape) - 1)
        factor, bias = self.factor.view(-1, *ones), self.bias.view(-1, *ones)
        return network.append(scaling_step(factor, bias, node, shape), shape)

    def roundings(self, shape: Shape) -> int:
        """The factor takes four, the shift three more, product and sum."""
        return 10

    def lipschitz(self, shape: Shape) -> float:
        """The largest factor."""
        return float(self.factor.abs().max()) * (1 + 1e-12)
