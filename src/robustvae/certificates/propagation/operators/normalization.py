"""Normalizations that mix the features of one input: group norm and layer norm."""

from __future__ import annotations

import math
from typing import Any, final

from torch import Tensor, nn

from robustvae.certificates.propagation.affine import double, scaling_step
from robustvae.certificates.propagation.operator import Builder, Operator, Shape
from robustvae.certificates.propagation.steps import LinearStep, NormalStep
from robustvae.errors import NonFiniteError, ShapeError, UnsupportedError
from robustvae.registry import register


@register("operator", "normalization")
@final
class Normalization(Operator):
    """(x - mean) / sqrt(variance + eps) over groups, times a weight, plus a bias.

    Centering is linear; dividing is `NormalStep`; the rest is a scale of each feature.
    """

    kinds = (nn.GroupNorm, nn.LayerNorm)

    def __init__(self, layer: Any) -> None:
        """Read eps and the weights."""
        super().__init__(layer)
        self.eps = float(layer.eps)
        if not (0 < self.eps < math.inf):
            raise UnsupportedError(
                f"bounds want {type(layer).__name__} with eps > 0, got {self.eps:g}"
            )
        self.weight, self.bias = double(layer.weight), double(layer.bias)
        largest = 1.0 if self.weight is None else float(self.weight.abs().max())
        if not math.isfinite(largest):
            raise NonFiniteError("weights must be finite, got a NaN or an infinity")
        self.largest = largest

    def group(self, shape: Shape) -> tuple[int, int]:
        """How many groups of how many features."""
        layer, size = self.layer, math.prod(shape)
        if isinstance(layer, nn.GroupNorm):
            if not shape or shape[0] != layer.num_channels:
                raise ShapeError(
                    f"GroupNorm needs features of {layer.num_channels} channels, got shape {shape}"
                )
            return layer.num_groups, size // layer.num_groups
        axes = tuple(layer.normalized_shape)
        if shape[len(shape) - len(axes) :] != axes:
            raise ShapeError(f"LayerNorm needs features that end in {axes}, got shape {shape}")
        return size // math.prod(axes), math.prod(axes)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """Three steps."""
        (node,) = reads
        shape = network.shape(node)
        groups, n = self.group(shape)

        def split(x: Tensor) -> Tensor:
            return x.reshape(len(x), groups, n)

        def back(x: Tensor) -> Tensor:
            return x.reshape(len(x), *shape)

        def center(x: Tensor, way: str) -> Tensor:
            x = split(x)
            mean = x.mean(2, keepdim=True)
            if way == "plain":
                return back(x - mean)
            # entries 1 - 1/n on the diagonal, -1/n beside it
            if way == "sizes":
                return back(x * (1 - 2 / n) + mean)
            return back(x * ((1 - 1 / n) ** 2 - 1 / n**2) + mean / n)

        step = LinearStep((node,), center, lambda y: center(y, "plain"), None, 2 * n, shape)
        node = network.append(step, shape)
        node = network.append(NormalStep((node,), split, back, self.eps), shape)
        if self.weight is None:
            return node
        weight, bias = self.weight, self.bias
        if isinstance(self.layer, nn.GroupNorm):
            ones = [1] * (len(shape) - 1)
            weight = weight.view(-1, *ones)
            bias = None if bias is None else bias.view(-1, *ones)
        return network.append(scaling_step(weight, bias, node, shape), shape)

    def roundings(self, shape: Shape) -> int:
        """Not known: the mean, the variance and the division each lose something else."""
        raise UnsupportedError(
            f"the rounding of a {type(self.layer).__name__} in float32 has no bound here; use "
            "vae.double()"
        )

    def lipschitz(self, shape: Shape) -> float:
        """max |weight| / sqrt(eps), which is reached where a group is constant."""
        n = self.group(shape)[1] if shape else 2
        if n == 1:  # a group of one feature is centered to 0 whatever comes in
            return 0.0
        return self.largest / math.sqrt(self.eps) * (1 + 1e-12)
