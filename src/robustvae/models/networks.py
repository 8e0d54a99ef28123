"""Encoder trunks and decoder nets by name: `mlp`, `conv8` and `conv28`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from robustvae.errors import ShapeError, check_choice

ImageShape = tuple[int, int, int]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@final
@dataclass(frozen=True)
class Networks:
    """What an architecture is made of.

    Attributes:
        trunk: Images (B, C, H, W) to features.
        head: Makes one head, features to (B, d).
        decoder: Latents (B, d) to likelihood parameters (B, C, H, W).
    """

    trunk: nn.Module
    head: Callable[[], nn.Module]
    decoder: nn.Module


def mlp(
    image_shape: ImageShape,
    latent: int,
    hidden: Sequence[int] = (512, 512),
    activation: str = "relu",
) -> Networks:
    """Fully connected both ways: pixels - hidden - d, and d - hidden reversed - pixels."""
    check_choice("activation", activation, ACTIVATIONS)
    pixels = math.prod(image_shape)
    nonlinearity = ACTIVATIONS[activation]
    widths = [pixels, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nonlinearity()]
    back: list[nn.Module] = []
    widths = [latent, *reversed(hidden)]
    for fan_in, fan_out in itertools.pairwise(widths):
        back += [nn.Linear(fan_in, fan_out), nonlinearity()]
    back += [nn.Linear(widths[-1], pixels), nn.Unflatten(1, image_shape)]
    last = hidden[-1] if hidden else pixels
    return Networks(nn.Sequential(*layers), lambda: nn.Linear(last, latent), nn.Sequential(*back))


def conv28(image_shape: ImageShape, latent: int) -> Networks:
    """The convolutional network for 28 x 28 images of [Kuzina22] Table 6."""
    channels = _wanted_size("conv28", image_shape, 28)
    trunk: list[nn.Module] = []
    widths = [channels, 32, 64, 96, 128]
    for fan_in, fan_out in itertools.pairwise(widths):
        trunk += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), nn.ReLU()]
    decoder = nn.Sequential(
        nn.Unflatten(1, (latent, 1, 1)),
        nn.ConvTranspose2d(latent, 128, 3, dilation=2),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 96, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(96, 64, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1),
    )

    def head() -> nn.Module:
        return nn.Sequential(nn.Conv2d(128, latent, 3, stride=2, padding=1), nn.Flatten())

    return Networks(nn.Sequential(*trunk), head, decoder)


def conv8(image_shape: ImageShape, latent: int) -> Networks:
    """A small convolutional network for 8 x 8 images."""
    channels = _wanted_size("conv8", image_shape, 8)
    trunk = nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    decoder = nn.Sequential(
        nn.Linear(latent, 32 * 4),
        nn.ReLU(),
        nn.Unflatten(1, (32, 2, 2)),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, channels, 4, stride=2, padding=1),
    )
    return Networks(trunk, lambda: nn.Linear(32 * 4, latent), decoder)


ARCHITECTURES: dict[str, Callable[..., Networks]] = {"conv28": conv28, "conv8": conv8, "mlp": mlp}
DEFAULT_SHAPES: dict[str, ImageShape] = {
    "conv28": (1, 28, 28),
    "conv8": (1, 8, 8),
    "mlp": (1, 28, 28),
}


def log_var_to_stddev(log_var: Tensor) -> Tensor:
    """exp(log_var / 2), with log_var kept within [-30, 20] so that no spread is 0 or infinite."""
    return torch.exp(0.5 * log_var.clamp(-30.0, 20.0))


def _wanted_size(name: str, image_shape: ImageShape, size: int) -> int:
    channels, height, width = image_shape
    if (height, width) != (size, size):
        raise ShapeError(
            f"architecture {name!r} wants images of {size} x {size} pixels, got {height} x {width}"
        )
    return channels
