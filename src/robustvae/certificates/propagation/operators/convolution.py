"""Convolutions and transposed convolutions, in one dimension and two."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.affine import double, ways
from robustvae.certificates.propagation.operator import Builder, Operator, Shape
from robustvae.certificates.propagation.steps import LinearStep
from robustvae.errors import ShapeError, UnsupportedError
from robustvae.norms import conv_norm_bound, conv_padding
from robustvae.registry import register

_DOWN = {1: functional.conv1d, 2: functional.conv2d}
_UP = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d}


@register("operator", "convolution")
@final
class Convolution(Operator):
    """Padded with zeros; any stride, dilation and groups."""

    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)

    def __init__(self, layer: Any) -> None:
        """Read the geometry.

        Raises:
            UnsupportedError: Padding with something else than zeros; a kernel that was exchanged
                for one of another size than the layer states.
        """
        super().__init__(layer)
        self.transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
        self.axes = len(layer.kernel_size)
        sides = (layer.in_channels, layer.out_channels)
        first, second = sides if self.transposed else reversed(sides)
        wanted = (first, second // layer.groups, *layer.kernel_size)
        if tuple(layer.weight.shape) != wanted:
            raise UnsupportedError(
                f"bounds want a {type(layer).__name__} whose weight has the shape that it states, "
                f"{wanted}, got {tuple(layer.weight.shape)}; make a new layer of that kernel"
            )
        self.padding = conv_padding(layer)
        self.by = ways(layer.weight)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One affine step."""
        (node,) = reads
        shape, layer, by = network.shape(node), self.layer, self.by
        channels = layer.weight.shape[0] if self.transposed else layer.in_channels
        if len(shape) != self.axes + 1 or shape[0] != channels:
            raise ShapeError(
                f"{type(layer).__name__} needs features of {channels} channels, got shape {shape}"
            )
        stride, dilation, groups = layer.stride, layer.dilation, layer.groups
        down_function, up_function = _DOWN[self.axes], _UP[self.axes]

        def down(x: Tensor, way: str) -> Tensor:
            return down_function(x, by[way], None, stride, self.padding, dilation, groups)

        def up(x: Tensor, way: str, more: Any, padding: Any) -> Tensor:
            return up_function(x, by[way], None, stride, padding, more, groups, dilation)

        if self.transposed:

            def apply(x: Tensor, way: str) -> Tensor:
                return up(x, way, layer.output_padding, self.padding)

            def transpose(y: Tensor) -> Tensor:
                back = down(y, "plain")
                for axis, size in enumerate(shape[1:]):
                    back = back.narrow(2 + axis, 0, size)
                return back
        else:
            apply = down

            def transpose(y: Tensor) -> Tensor:
                # what the stride left over at the far side of each axis
                left = tuple(
                    n - ((k - 1) * s - 2 * p + d * (t - 1) + 1)
                    for n, k, s, p, d, t in zip(
                        shape[1:],
                        y.shape[2:],
                        stride,
                        self.padding,
                        dilation,
                        layer.kernel_size,
                        strict=True,
                    )
                )
                return up(y, "plain", left, self.padding)

        bias = double(layer.bias)
        if bias is not None:
            bias = bias.view(-1, *[1] * self.axes)
        weight = by["plain"]
        terms = sum(weight.shape[:2]) * weight[0, 0].numel()
        window = None
        if not self.transposed and self.axes == 2:

            def grow(y: Tensor) -> Tensor:
                return up(y, "plain", 0, 0)

            window = (grow, stride, self.padding)
        step = LinearStep((node,), apply, transpose, bias, terms, shape, window=window)
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        return network.append(step, tuple(apply(zero, "plain").shape[1:]))

    def roundings(self, shape: Shape) -> int:
        """Products, their sum, the bias; a transposed one may sum over all that reaches a pixel."""
        kernel = self.layer.weight[0, 0].numel()
        channels = self.layer.in_channels // self.layer.groups
        return int(kernel * channels) + 2

    def lipschitz(self, shape: Shape) -> float:
        """The norm of the periodic convolution that it is a part of."""
        if not shape:
            raise UnsupportedError(f"{type(self.layer).__name__} needs features of a known shape")
        coarse = shape[1:]
        if not self.transposed:
            coarse = tuple(
                (n + 2 * p - d * (t - 1) - 1) // s + 1
                for n, p, d, t, s in zip(
                    shape[1:],
                    self.padding,
                    self.layer.dilation,
                    self.layer.kernel_size,
                    self.layer.stride,
                    strict=True,
                )
            )
        return conv_norm_bound(self.layer, coarse)
