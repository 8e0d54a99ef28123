"""Encoder trunks and decoder nets by name, for images of one size or of any."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae.errors import (
    ConfigError,
    ShapeError,
    check_choice,
    check_count,
    check_sizes,
    check_type,
)

ImageShape = tuple[int, int, int]
LOG_VAR_RANGE = (-30.0, 20.0)
"""Within which log variances are kept: spreads from 3e-7 to 2e4."""
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@final
@dataclass(frozen=True)
class Networks:
    """What an architecture is made of.

    Attributes:
        trunk: Images (B, C, H, W) to features.
        head: Makes one head, features to (B, d).
        decoder: What the likelihood reads, (B, k), to its parameters (B, C, H, W).
    """

    trunk: nn.Module
    head: Callable[[], nn.Module]
    decoder: nn.Module


def mlp(
    image_shape: ImageShape,
    latent: int,
    seen: int,
    hidden: Sequence[int] = (512, 512),
    activation: str = "relu",
    batch_norm: bool = False,
) -> Networks:
    """Fully connected both ways: pixels - hidden - d, and k - hidden reversed - pixels."""
    check_choice("activation", activation, ACTIVATIONS)
    pixels = math.prod(image_shape)

    def dense(widths: Sequence[int]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers.append(nn.Linear(fan_in, fan_out))
            if batch_norm:
                layers.append(nn.BatchNorm1d(fan_out))
            layers.append(ACTIVATIONS[activation]())
        return layers

    trunk = nn.Sequential(nn.Flatten(), *dense([pixels, *hidden]))
    back = dense([seen, *reversed(hidden)])
    first, last = (hidden[0], hidden[-1]) if hidden else (seen, pixels)
    decoder = nn.Sequential(*back, nn.Linear(first, pixels), nn.Unflatten(1, image_shape))
    return Networks(trunk, lambda: nn.Linear(last, latent), decoder)


def conv28(image_shape: ImageShape, latent: int, seen: int) -> Networks:
    """The convolutional network for 28 x 28 images of [Kuzina22] Table 6."""
    channels = _wanted_size("conv28", image_shape, 28)
    trunk: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([channels, 32, 64, 96, 128]):
        trunk += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), nn.ReLU()]
    decoder = nn.Sequential(
        nn.Unflatten(1, (seen, 1, 1)),
        nn.ConvTranspose2d(seen, 128, 3, dilation=2),
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


def conv32(image_shape: ImageShape, latent: int, seen: int) -> Networks:
    """A convolutional network for 32 x 32 images: `conv64` with a layer less."""
    channels = _wanted_size("conv32", image_shape, 32)
    return _halving([channels, 32, 64, 64], latent, seen)


def conv64(image_shape: ImageShape, latent: int, seen: int) -> Networks:
    """The convolutional network for 64 x 64 images of Higgins et al., 2017, and [Chen18]."""
    channels = _wanted_size("conv64", image_shape, 64)
    return _halving([channels, 32, 32, 64, 64], latent, seen)


def conv64_tanh(image_shape: ImageShape, latent: int, seen: int) -> Networks:
    """The convolutional network for faces of [Khan23] appendix A: tanh and batch norm."""
    channels = _wanted_size("conv64_tanh", image_shape, 64)
    trunk: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([channels, 32, 64, 128, 256, 512]):
        trunk += [
            nn.Conv2d(fan_in, fan_out, 4, stride=2, padding=1),
            nn.BatchNorm2d(fan_out),
            nn.Tanh(),
        ]
    trunk += [nn.Flatten(), nn.Linear(512 * 4, latent)]
    back: list[nn.Module] = [nn.Linear(seen, 1024), nn.Unflatten(1, (1024, 1, 1))]
    for fan_in, fan_out in itertools.pairwise([1024, 512, 256, 128, 64, 32]):
        back += [
            nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1),
            nn.BatchNorm2d(fan_out),
            nn.Tanh(),
        ]
    back.append(nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1))
    return Networks(nn.Sequential(*trunk), lambda: nn.Linear(latent, latent), nn.Sequential(*back))


def conv8(image_shape: ImageShape, latent: int, seen: int) -> Networks:
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
        nn.Linear(seen, 32 * 4),
        nn.ReLU(),
        nn.Unflatten(1, (32, 2, 2)),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, channels, 4, stride=2, padding=1),
    )
    return Networks(trunk, lambda: nn.Linear(32 * 4, latent), decoder)


ARCHITECTURES: dict[str, Callable[..., Networks]] = {
    "conv28": conv28,
    "conv32": conv32,
    "conv64": conv64,
    "conv64_tanh": conv64_tanh,
    "conv8": conv8,
    "mlp": mlp,
}
DEFAULT_SHAPES: dict[str, ImageShape] = {
    "conv28": (1, 28, 28),
    "conv32": (3, 32, 32),
    "conv64": (1, 64, 64),
    "conv64_tanh": (3, 64, 64),
    "conv8": (1, 8, 8),
    "mlp": (1, 28, 28),
}


def build(
    architecture: str,
    latent: int,
    seen: int,
    image_shape: Sequence[int] | None = None,
    *,
    hidden: Sequence[int] | None = None,
    activation: str | None = None,
    batch_norm: bool | None = None,
) -> tuple[Networks, dict[str, Any]]:
    """The networks of an architecture, and the complete options that make them again.

    Args:
        architecture: One of `ARCHITECTURES`.
        latent: Outputs of each head.
        seen: Inputs of the decoder.
        image_shape: (C, H, W); by default one that the architecture is made for.
        hidden: Widths of the `mlp`, from the pixels inwards.
        activation: One of `ACTIVATIONS`, of the `mlp`.
        batch_norm: Whether the `mlp` has batch norm before its activations.

    Raises:
        UnknownNameError: An unknown architecture or activation.
        ConfigError: Options of the `mlp` for another architecture.
        RangeError: A width that is not positive.
        ShapeError: Images that the architecture cannot read.
    """
    check_choice("architecture", architecture, ARCHITECTURES)
    check_count(latent, "latent")
    shape = DEFAULT_SHAPES[architecture] if image_shape is None else image_shape
    check_sizes(shape, "image_shape", axes=3)
    options: dict[str, Any] = {}
    if architecture == "mlp":
        hidden = [512, 512] if hidden is None else hidden
        check_sizes(hidden, "hidden")
        batch_norm = False if batch_norm is None else batch_norm
        check_type(batch_norm, "batch_norm", bool)
        options["hidden"] = list(hidden)
        options["activation"] = "relu" if activation is None else activation
        options["batch_norm"] = batch_norm
    elif hidden is not None or activation is not None or batch_norm is not None:
        raise ConfigError(
            f"hidden, activation and batch_norm need architecture='mlp', got {architecture!r}"
        )
    networks = ARCHITECTURES[architecture]((shape[0], shape[1], shape[2]), latent, seen, **options)
    return networks, {"architecture": architecture, "image_shape": list(shape), **options}


def log_var_to_stddev(log_var: Tensor) -> Tensor:
    """exp(log_var / 2), with log_var kept within [-30, 20] so that no spread is 0 or infinite."""
    return torch.exp(0.5 * log_var.clamp(*LOG_VAR_RANGE))


def _halving(widths: Sequence[int], latent: int, seen: int) -> Networks:
    """Convolutions that halve the image down to 4 x 4, then 256 features; and the way back."""
    trunk: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        trunk += [nn.Conv2d(fan_in, fan_out, 4, stride=2, padding=1), nn.ReLU()]
    trunk += [nn.Flatten(), nn.Linear(widths[-1] * 16, 256), nn.ReLU()]
    back: list[nn.Module] = [
        nn.Linear(seen, 256),
        nn.ReLU(),
        nn.Linear(256, widths[-1] * 16),
        nn.ReLU(),
        nn.Unflatten(1, (widths[-1], 4, 4)),
    ]
    for fan_in, fan_out in itertools.pairwise(reversed(widths)):
        back += [nn.ConvTranspose2d(fan_in, fan_out, 4, stride=2, padding=1), nn.ReLU()]
    decoder = nn.Sequential(*back[:-1])
    return Networks(nn.Sequential(*trunk), lambda: nn.Linear(256, latent), decoder)


def _wanted_size(name: str, image_shape: ImageShape, size: int) -> int:
    channels, height, width = image_shape
    if (height, width) != (size, size):
        raise ShapeError(
            f"architecture {name!r} wants images of {size} x {size} pixels, got {height} x {width}"
        )
    return channels
