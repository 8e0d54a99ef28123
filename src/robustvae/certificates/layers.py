"""What every bound reads off a layer: its order, the scale of its batch norm, its slopes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustvae.errors import UnsupportedError

ROUNDING = 1e-14
"""Relative error granted to one elementwise function, its derivative or one value."""


def layers_of(*networks: nn.Module) -> list[nn.Module]:
    """The layers of feed-forward networks in order, nested `nn.Sequential` taken apart.

    Raises:
        UnsupportedError: A module with a forward hook.
    """
    found: list[nn.Module] = []
    for network in networks:
        if "forward" in vars(network):
            raise UnsupportedError(f"a {type(network).__name__} with a forward of its own")
        if network._forward_hooks or network._forward_pre_hooks:
            raise UnsupportedError(f"a {type(network).__name__} with a forward hook is not covered")
        if type(network) is nn.Sequential:
            found += layers_of(*network)
        else:
            found.append(network)
    return found


def batch_norm_factor(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """What evaluation mode multiplies each channel by, (C,), float64.

    Raises:
        UnsupportedError: No running statistics: the layer then mixes its inputs.
    """
    if layer.running_var is None or layer.running_mean is None:
        raise UnsupportedError(f"{type(layer).__name__} without running statistics")
    factor: Tensor = (layer.running_var.double() + layer.eps).rsqrt()
    return factor if layer.weight is None else factor * layer.weight.detach().double()


def slopes(layer: nn.Module, value: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest slope of an elementwise activation over [value - width, value + width]."""
    low, high = value - width, value + width
    if isinstance(layer, nn.ReLU | nn.LeakyReLU):
        other = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
        before = torch.where(low < 0, other, 1.0)
        after = torch.where(high > 0, 1.0, other)
        return torch.minimum(before, after), torch.maximum(before, after)
    near = torch.where(low * high <= 0, 0.0, torch.minimum(low.abs(), high.abs()))
    far = torch.maximum(low.abs(), high.abs())
    if isinstance(layer, nn.Tanh):
        return 1 - far.tanh().square(), 1 - near.tanh().square()
    if isinstance(layer, nn.Sigmoid):
        return torch.sigmoid(far) * torch.sigmoid(-far), torch.sigmoid(near) * torch.sigmoid(-near)
    if isinstance(layer, nn.Softplus):
        return torch.sigmoid(layer.beta * low), torch.sigmoid(layer.beta * high)
    raise UnsupportedError(f"no local bound is known for {type(layer).__name__}")
