"""Orthogonal convolution kernels by orthogonium, which only training needs.

A kernel is a differentiable function of unconstrained tensors, which train; what a model evaluates,
stores and certifies is the kernel itself, in a plain convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import cast, final

import torch
from torch import Tensor, nn

from robustvae.errors import MissingExtraError, install_command
from robustvae.seeding import seeded

Convolution = nn.Conv2d | nn.ConvTranspose2d
RAW = "raw_"


@final
class MoveChannels(nn.Module):
    """Images with their channels last, (B, H, W, C), or with their channels first again.

    Examples:
        >>> import torch
        >>> from robustvae.models.orthogonal import MoveChannels
        >>> last = MoveChannels(last=True)(torch.zeros(5, 3, 8, 8))
        >>> last.shape, MoveChannels(last=False)(last).shape
        (torch.Size([5, 8, 8, 3]), torch.Size([5, 3, 8, 8]))
    """

    def __init__(self, last: bool) -> None:
        """Keep the direction."""
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """The same features in another order."""
        return x.movedim(1, -1) if self.last else x.movedim(-1, 1)

    def extra_repr(self) -> str:
        """Show the direction."""
        return "last" if self.last else "first"


def convolutions(network: nn.Module) -> Iterator[Convolution]:
    """The convolutions of a network."""
    return (module for module in network.modules() if isinstance(module, Convolution))


def equip(layer: Convolution) -> None:
    """Give a layer the unconstrained tensors of its kernel, from torch's global generator.

    Raises:
        MissingExtraError: No orthogonium.
    """
    layer.weight.requires_grad_(False)
    for i, raw in enumerate(_maker(*_geometry(layer)).parameters()):
        layer.register_parameter(f"{RAW}{i}", nn.Parameter(raw.detach().clone()))


def raw_of(layer: Convolution) -> list[Tensor]:
    """The unconstrained tensors of a layer's kernel."""
    return [tensor for name, tensor in layer.named_parameters() if name.startswith(RAW)]


def kernel(layer: Convolution, raw: Sequence[Tensor]) -> Tensor:
    """The orthogonal kernel that unconstrained tensors stand for, differentiable.

    A transposed convolution is the adjoint of a plain one with the same kernel.

    Args:
        layer: The convolution it is for.
        raw: As of `raw_of`.

    Returns:
        Kernel in the shape of the layer's weight.

    Raises:
        MissingExtraError: No orthogonium.

    References:
        Boissin et al., 2025 (adaptive orthogonal convolutions); Li et al., 2019 (BCOP).
    """
    with seeded(0):  # the template's own weights do not matter
        template = _template(*_geometry(layer))
    names = [name for name, _ in template.named_parameters()]
    parameters = dict(zip(names, raw, strict=True))
    return cast(Tensor, torch.func.functional_call(template, parameters, ()))


def _geometry(layer: Convolution) -> tuple[int, int, int, int]:
    channels = (layer.in_channels, layer.out_channels)
    fine, coarse = channels if isinstance(layer, nn.Conv2d) else channels[::-1]
    return fine, coarse, layer.kernel_size[0], layer.stride[0]


def _maker(fine: int, coarse: int, size: int, stride: int) -> nn.Module:
    try:
        from orthogonium.layers.conv.AOC.ortho_conv import AdaptiveOrthoConv2d
        from orthogonium.reparametrizers import (
            BatchedIdentity,
            BatchedQROrthogonalization,
            OrthoParams,
        )
    except ImportError:
        raise MissingExtraError(
            f"training orthogonal convolutions needs orthogonium: {install_command('lipschitz')}"
        ) from None
    exact = OrthoParams(
        spectral_normalizer=BatchedIdentity, orthogonalizer=BatchedQROrthogonalization
    )
    return _Kernel(
        AdaptiveOrthoConv2d(
            fine,
            coarse,
            size,
            stride,
            padding=0,
            padding_mode="zeros",
            bias=False,
            ortho_params=exact,
        )
    )


_template = functools.cache(_maker)


@final
class _Kernel(nn.Module):
    """A layer of orthogonium whose output is its kernel."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return cast(Tensor, self.layer.weight)
