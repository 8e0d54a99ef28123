"""Pooling: averages are linear, the largest value is found two by two."""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.affine import axes_step, pick_step
from robustvae.certificates.propagation.operator import Builder, Calls, Operator, Shape
from robustvae.certificates.propagation.operators.relu import RECTIFIER
from robustvae.certificates.propagation.operators.sorts import last_axis
from robustvae.certificates.propagation.steps import CurveStep
from robustvae.errors import ShapeError, UnsupportedError
from robustvae.norms import spectral_norm_bound
from robustvae.registry import register


def each(value: Any, axes: int) -> tuple[Any, ...]:
    """An option for each axis."""
    return tuple(value) if isinstance(value, tuple | list) else (value,) * axes


def axes_of(layer: nn.Module) -> int:
    """How many axes a layer works along, by the name of its class, such as MaxPool2d."""
    return 1 if type(layer).__name__.endswith("1d") else 2


def check_axes(layer: nn.Module, axes: int, shape: Shape) -> None:
    """Raise unless features have channels and so many axes."""
    if len(shape) != axes + 1:
        raise ShapeError(f"a {type(layer).__name__} wants {axes + 1} axes, got the shape {shape}")


class _Axes(Operator):
    """A linear map that is one matrix an axis."""

    axes: int

    def matrices(self, shape: Shape) -> list[Tensor]:
        """One for each of the last axes, (m, n), from what the layer does to the unit vectors."""
        check_axes(self.layer, self.axes, shape)
        eyes = [torch.eye(size, dtype=torch.float64)[:, None] for size in shape[1:]]
        # (n, 1, n) to (n, 1, m)
        return [self.along(eye, axis)[:, 0].mT for axis, eye in enumerate(eyes)]

    @abc.abstractmethod
    def along(self, x: Tensor, axis: int) -> Tensor:
        """The layer along one axis alone, (n, 1, n) to (n, 1, m)."""

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One affine step."""
        (node,) = reads
        shape = network.shape(node)
        matrices = self.matrices(shape)
        step = axes_step(matrices, None, node, shape)
        return network.append(step, (shape[0], *(len(matrix) for matrix in matrices)))

    def roundings(self, shape: Shape) -> int:
        """At most all features of a channel, their sum, the divisor."""
        return math.prod(shape[1:]) + 2

    def lipschitz(self, shape: Shape) -> float:
        """The product of the axes' norms."""
        # the norm of a Kronecker product is the product of the norms
        bound = 1.0
        for matrix in self.matrices(shape):
            bound *= spectral_norm_bound(matrix)
        return bound * (1 + 1e-12)


@register("operator", "average-pool")
@final
class AveragePool(_Axes):
    """The average over windows."""

    kinds = (nn.AvgPool1d, nn.AvgPool2d)
    calls: ClassVar[Calls] = {
        functional.avg_pool1d: nn.AvgPool1d,
        functional.avg_pool2d: nn.AvgPool2d,
    }

    def __init__(self, layer: nn.AvgPool1d | nn.AvgPool2d) -> None:
        """Read the windows."""
        super().__init__(layer)
        if getattr(layer, "divisor_override", None) is not None:
            raise UnsupportedError(
                "bounds want an AvgPool2d without divisor_override, got one; scale it instead"
            )
        self.axes = axes_of(layer)

    def along(self, x: Tensor, axis: int) -> Tensor:
        """The divisor is a product over the axes, so each averages alone."""
        layer = self.layer
        size, stride, padding = (
            each(option, self.axes)[axis]
            for option in (layer.kernel_size, layer.stride, layer.padding)
        )
        return functional.avg_pool1d(
            x, size, stride, padding, layer.ceil_mode, layer.count_include_pad
        )


@register("operator", "adaptive-average-pool")
@final
class AdaptiveAverage(_Axes):
    """The average over as many windows as are wanted."""

    kinds = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
    calls: ClassVar[Calls] = {
        functional.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
        functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    }

    def __init__(self, layer: nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d) -> None:
        """Read how many."""
        super().__init__(layer)
        self.axes = axes_of(layer)

    def along(self, x: Tensor, axis: int) -> Tensor:
        """Along one axis."""
        size = each(self.layer.output_size, self.axes)[axis]
        return functional.adaptive_avg_pool1d(x, x.shape[-1] if size is None else size)


@register("operator", "max-pool")
@final
class MaxPool(Operator):
    """The largest value of each window, by rounds of max(a, b) = a + relu(b - a)."""

    kinds = (nn.MaxPool1d, nn.MaxPool2d)
    calls: ClassVar[Calls] = {
        functional.max_pool1d: nn.MaxPool1d,
        functional.max_pool2d: nn.MaxPool2d,
    }

    def __init__(self, layer: nn.MaxPool1d | nn.MaxPool2d) -> None:
        """Read the windows."""
        super().__init__(layer)
        if layer.return_indices:
            raise UnsupportedError("bounds want a MaxPool without return_indices")
        self.axes = axes_of(layer)

    def windows(self, shape: Shape) -> tuple[Tensor, Shape]:
        """The flat features that each window sees, (window, n), and the shape of what comes out.

        A window that hangs over the edge names one of its features more than once.
        """
        check_axes(self.layer, self.axes, shape)
        layer, places = self.layer, []
        for axis, size in enumerate(shape[1:]):
            taps, stride, padding, dilation = (
                each(option, self.axes)[axis]
                for option in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            )
            line = torch.zeros(1, 1, size, dtype=torch.float64)
            pool = functional.max_pool1d(line, taps, stride, padding, dilation, layer.ceil_mode)
            start = torch.arange(pool.shape[-1]) * stride - padding
            positions = start[None, :] + torch.arange(taps)[:, None] * dilation
            within = (positions >= 0) & (positions < size)
            first = torch.where(within, positions, size).amin(0)
            places.append(torch.where(within, positions, first))
        flat = torch.arange(shape[0])[None, :]
        out: Shape = (shape[0],)
        for axis, positions in enumerate(places):
            size = shape[1 + axis]
            flat = (
                (flat[:, None, :, None] * size + positions[None, :, None, :])
                .flatten(2)
                .flatten(0, 1)
            )
            out = (*out, positions.shape[1])
        return flat, out

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """Windows gathered, then halved until one value is left; an odd one waits."""
        (node,) = reads
        shape = network.shape(node)
        index, out = self.windows(shape)
        count, size = index.shape
        ones = torch.ones(1, count * size, dtype=torch.float64)
        # (n, window): one window's values lie together
        gather_step = pick_step(index.T.reshape(1, -1), ones, node, shape, (size, count))
        node = network.append(gather_step, (size, count))
        while count > 1:
            pairs, odd = count // 2, count % 2
            one, two = torch.arange(pairs), pairs + torch.arange(pairs)
            left = torch.arange(count - odd, count)
            # a and what waits, then b - a
            first = torch.cat([one, left, two])
            second = torch.cat([one, left, one])
            signs = torch.zeros(2, count, dtype=torch.float64)
            signs[0], signs[1, pairs + odd :] = 1.0, -1.0
            wide = (size, count)
            step = last_axis(torch.stack([first, second]), signs, node, wide, count)
            node = network.append(step, wide)
            width = pairs + odd
            node = network.append(CurveStep((node,), RECTIFIER, after=width), wide)
            every = torch.arange(width)
            behind = torch.where(every < pairs, width + every, every)
            signs = torch.ones(2, width, dtype=torch.float64)
            signs[1, pairs:] = 0.0
            step = last_axis(torch.stack([every, behind]), signs, node, wide, width)
            node, count = network.append(step, (size, width)), width
        step = pick_step(
            torch.arange(size)[None], torch.ones(1, size, dtype=torch.float64), node, (size, 1), out
        )
        return network.append(step, out)

    def lipschitz(self, shape: Shape) -> float:
        """The root of how many windows see one feature: max is 1-Lipschitz in the largest."""
        index, _ = self.windows(shape)
        counts = [torch.bincount(row) for row in index]
        greatest = max(len(row) for row in counts)
        total = sum(torch.nn.functional.pad(row, (0, greatest - len(row))) for row in counts)
        return float(torch.as_tensor(total).max()) ** 0.5 * (1 + 1e-12)
