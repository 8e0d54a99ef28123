"""Linear layers that repeat or interpolate pixels: upsampling and padding."""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.affine import axes_step
from robustvae.certificates.propagation.operator import Builder, Calls, Shape
from robustvae.certificates.propagation.operators.pooling import _Axes, each
from robustvae.errors import ShapeError, UnsupportedError
from robustvae.registry import register


def _interpolate(
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> nn.Upsample:
    if antialias:
        raise UnsupportedError("bounds want an interpolation with antialias=False, got True")
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


@register("operator", "upsample")
@final
class Upsample(_Axes):
    """Nearest or bilinear; both are one matrix an axis."""

    kinds = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
    calls: ClassVar[Calls] = {functional.interpolate: _interpolate}

    def __init__(self, layer: nn.Upsample) -> None:
        """Read the mode."""
        super().__init__(layer)
        if layer.mode not in ("nearest", "nearest-exact", "linear", "bilinear"):
            raise UnsupportedError(
                f"bounds want Upsample with mode 'nearest' or 'bilinear', got {layer.mode!r}"
            )

    def matrices(self, shape: Shape) -> list[Tensor]:
        """As many axes as the features have."""
        self.axes = len(shape) - 1
        axes = {"linear": 1, "bilinear": 2}.get(self.layer.mode, self.axes)
        if self.axes != axes or self.axes not in (1, 2):
            raise ShapeError(
                f"Upsample(mode={self.layer.mode!r}) needs features (C, H, W), got shape {shape}"
            )
        return super().matrices(shape)

    def roundings(self, shape: Shape) -> int:
        """None where pixels are repeated; else positions, weights, products and sums."""
        if self.layer.mode.startswith("nearest"):
            return 0
        # a position is a product and a difference, rounded at the size of the image
        return 64 + 4 * max(shape[1:])

    def along(self, x: Tensor, axis: int) -> Tensor:
        """Along one axis, with the layer's own arithmetic for sizes and positions."""
        layer = self.layer
        mode = "linear" if layer.mode == "bilinear" else layer.mode
        size = None if layer.size is None else each(layer.size, self.axes)[axis]
        factor = None if layer.scale_factor is None else each(layer.scale_factor, self.axes)[axis]
        again = layer.recompute_scale_factor
        return functional.interpolate(x, size, factor, mode, layer.align_corners, again)


@register("operator", "padding")
@final
class Padding(_Axes):
    """By zeros, a constant, reflection, repetition or the other side."""

    kinds = (
        nn.ZeroPad1d,
        nn.ZeroPad2d,
        nn.ConstantPad1d,
        nn.ConstantPad2d,
        nn.ReflectionPad1d,
        nn.ReflectionPad2d,
        nn.ReplicationPad1d,
        nn.ReplicationPad2d,
        nn.CircularPad1d,
        nn.CircularPad2d,
    )

    def __init__(self, layer: Any) -> None:
        """Read the sides."""
        super().__init__(layer)
        self.sides = tuple(layer.padding)
        self.axes = len(self.sides) // 2
        name = type(layer).__name__
        modes = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
        self.mode = next((mode for key, mode in modes.items() if key in name), "constant")
        self.constant = float(getattr(layer, "value", 0.0) or 0.0)

    def roundings(self, shape: Shape) -> int:
        """None: pixels are repeated; a constant may be rounded."""
        return 1 if self.constant else 0

    def along(self, x: Tensor, axis: int) -> Tensor:
        """The sides of one axis; torch lists the last axis first."""
        k = 2 * (self.axes - 1 - axis)
        return functional.pad(x, self.sides[k : k + 2], mode=self.mode)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One affine step; a constant is a bias around."""
        (node,) = reads
        shape = network.shape(node)
        matrices, bias = self.matrices(shape), None
        if self.constant:
            inner = torch.zeros(1, *shape, dtype=torch.float64)
            bias = functional.pad(inner, self.sides, value=self.constant)[0]
        step = axes_step(matrices, bias, node, shape)
        return network.append(step, (shape[0], *(len(matrix) for matrix in matrices)))
