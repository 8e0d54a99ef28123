"""Layers that only rearrange features, or pass them."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.propagation.affine import moving_step
from robustvae.certificates.propagation.graph import Part
from robustvae.certificates.propagation.operator import Builder, Calls, Operator, Shape
from robustvae.errors import UnsupportedError
from robustvae.models.orthogonal import MoveChannels
from robustvae.registry import register


@register("operator", "identity")
@final
class Pass(Operator):
    """Nothing; dropout in evaluation mode."""

    kinds = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """No step."""
        return reads[0]

    def lipschitz(self, shape: Shape) -> float:
        """1."""
        return 1.0


class _Move(Operator):
    """A rearrangement of each input's features."""

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One affine step; the adjoint of an exchange is the exchange back."""
        (node,) = reads
        shape = network.shape(node)
        zero = torch.zeros(1, *shape, dtype=torch.float64)
        after = tuple(self.forward(zero).shape[1:])
        step = moving_step(self.forward, lambda y: self.back(y, shape), node, shape)
        return network.append(step, after)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer does it."""
        result: Tensor = self.layer(x)
        return result

    @abc.abstractmethod
    def back(self, y: Tensor, shape: Shape) -> Tensor:
        """The adjoint."""

    def lipschitz(self, shape: Shape) -> float:
        """1."""
        return 1.0


@register("operator", "reshape")
@final
class Reshape(_Move):
    """The same features in another shape."""

    kinds = (nn.Flatten, nn.Unflatten)

    def __init__(self, layer: nn.Flatten | nn.Unflatten) -> None:
        """Read which axes; that of the batch must not be among them."""
        super().__init__(layer)
        axis = layer.start_dim if isinstance(layer, nn.Flatten) else layer.dim
        if not isinstance(axis, int) or axis == 0:
            raise UnsupportedError(
                f"bounds want a {type(layer).__name__} that leaves the batch alone, got axis {axis}"
            )

    def back(self, y: Tensor, shape: Shape) -> Tensor:
        """The shape before."""
        return y.reshape(-1, *shape)


@register("operator", "move-channels")
@final
class ChannelsMove(_Move):
    """The channels last, or first again."""

    kinds = (MoveChannels,)

    def back(self, y: Tensor, shape: Shape) -> Tensor:
        """The other way."""
        return y.movedim(-1, 1) if self.layer.last else y.movedim(1, -1)


@register("operator", "pixel-shuffle")
@final
class Shuffle(_Move):
    """Channels to finer pixels, and back."""

    kinds = (nn.PixelShuffle, nn.PixelUnshuffle)
    calls: ClassVar[Calls] = {
        functional.pixel_shuffle: nn.PixelShuffle,
        functional.pixel_unshuffle: nn.PixelUnshuffle,
    }

    def back(self, y: Tensor, shape: Shape) -> Tensor:
        """The other one."""
        if isinstance(self.layer, nn.PixelShuffle):
            return functional.pixel_unshuffle(y, self.layer.upscale_factor)
        return functional.pixel_shuffle(y, int(self.layer.downscale_factor))


@register("operator", "channels")
@final
class Channels(_Move):
    """Some channels, or features."""

    kinds = (Part,)

    def back(self, y: Tensor, shape: Shape) -> Tensor:
        """Zeros around."""
        sides: Any = (self.layer.start, shape[0] - self.layer.stop)
        return functional.pad(y, (0, 0) * (y.ndim - 2) + sides)
