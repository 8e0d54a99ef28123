"""More planted fakes and honest victims, of the kinds that are hardest to tell apart.

Fakes: saturated or stepped functions whose local gradient is right, transforms drawn at random,
and backward passes that are nearly right. Honest victims: clamps, pools, quantizers that train
straight through, random transforms that the attack sees through, deep saturating networks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import robustvae as rv
from robustvae.models import VAE
from robustvae.models.likelihoods import Gaussian
from tests.fakes.planted import (
    BLIND,
    HONEST,
    USELESS,
    behind,
    fake,
    with_gradient,
    wrapped,
)

NOISY = ("robust_without_attack", "adaptive_at_least_transfer", *USELESS)


class Moved:
    """A transform drawn for each row: turned by up to `angle`, scaled by up to `zoom`."""

    is_random = True

    def __init__(self, angle: float, zoom: float, noise: float) -> None:
        self.angle, self.zoom, self.noise = angle, zoom, noise

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        numbers = 2 * rv.seeding.rand(len(x), 2, like=x, generator=generator) - 1
        angle, zoom = self.angle * numbers[:, 0], 1 + self.zoom * numbers[:, 1]
        cosine, sine = zoom * angle.cos(), zoom * angle.sin()
        zero = torch.zeros_like(zoom)
        matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(-1, 2, 3)
        grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
        picture = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
        noise = rv.seeding.randn(*x.shape, like=x, generator=generator)
        return vae.encode(picture + self.noise * noise).mean


@fake(*NOISY)
def random_rotation(vae: VAE, x: Tensor) -> Any:
    """Turned by up to a right angle, with noise: its own noise passes for robustness."""
    return rv.Victim(vae, Moved(math.pi / 2, 0.2, 0.15))


@fake(*NOISY)
def random_pixels_dropped(vae: VAE, x: Tensor) -> Any:
    """Half of the pixels gray, drawn for the whole batch, and noise."""

    class Dropped:
        is_random = True

        def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
            mask = torch.rand(x.shape[1:], generator=generator, dtype=x.dtype) < 0.5
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            return vae.encode(torch.where(mask, x, 0.5) + 0.2 * noise).mean

    return rv.Victim(vae, Dropped())


@fake(*BLIND, "gradient_beats_gradient_free")
def soft_staircase(vae: VAE, x: Tensor) -> Any:
    """Five levels with steep smooth steps: the gradient is right, and next to none on a level."""

    def change(images: Tensor) -> Tensor:
        level = (4 * images).floor()
        return (level + torch.sigmoid(150 * (4 * images - level - 0.5))) / 4

    return wrapped(vae, lambda images: vae.encode(change(images)))


@fake(*BLIND, "gradient_beats_gradient_free", *USELESS)
def saturated_codes(vae: VAE, x: Tensor) -> Any:
    """Codes through a hyperbolic tangent of gain 300: corners of a cube."""

    def encode(images: Tensor) -> Any:
        q = vae.encode(images)
        return Gaussian(2 * torch.tanh(300 * q.mean), q.stddev)

    return wrapped(vae, encode)


@fake(*BLIND, "gradient_beats_gradient_free", "same_beside_inputs")
def cold_softmax(vae: VAE, x: Tensor) -> Any:
    """A mixture of known images with a temperature so low that only the nearest counts."""
    known = x[:200].flatten(1).clone()

    def change(images: Tensor) -> Tensor:
        gaps = torch.cdist(images.flatten(1), known).square()
        return (torch.softmax(-1e4 * gaps, 1) @ known).view_as(images)

    return behind(vae, change)


@fake(*BLIND, "gradient_beats_gradient_free", "near_inputs_near_outputs")
def ripples(vae: VAE, x: Tensor) -> Any:
    """Ripples too fine to matter, whose slopes drown those of the model."""
    return wrapped(vae, lambda images: vae.encode(images + 0.02 * torch.sin(2e3 * images)))


@fake(*BLIND)
def gradient_underflows(vae: VAE, x: Tensor) -> Any:
    """A gradient scaled below the smallest number."""
    return with_gradient(vae, lambda g: g * 1e-30 * 1e-30 * 1e-300)


@fake(*BLIND)
def gradient_of_neighbor(vae: VAE, x: Tensor) -> Any:
    """Each row gets the gradient of the row beside it."""
    return with_gradient(vae, lambda g: g.roll(1, 0).flip(-1))


@fake(*BLIND)
def gradient_thinned(vae: VAE, x: Tensor) -> Any:
    """Hands on every fourth pixel's gradient."""

    def change(g: Tensor) -> Tensor:
        thin = torch.zeros_like(g)
        thin[..., ::2, ::2] = g[..., ::2, ::2]
        return thin

    return with_gradient(vae, change)


def straight_through(values: Tensor, levels: int) -> Tensor:
    return values + ((levels * values).round() / levels - values).detach()


def pooled(images: Tensor) -> Tensor:
    return functional.max_pool2d(images, 2, 1, 1)[..., 1:, 1:]


def deep_sigmoid(images: Tensor, layers: int = 10) -> Tensor:
    """Layers of rotations and logistic functions of gain 4, and the rotations turned back."""
    noise = torch.randn(images[0].numel(), images[0].numel(), generator=rv.generator(12))
    turn, _ = torch.linalg.qr(noise.to(images))
    flat = images.flatten(1) - 0.5
    for _ in range(layers):
        flat = 4 * (torch.sigmoid(flat @ turn) - 0.5)
    for _ in range(layers):
        flat = flat @ turn.T
    return flat.view_as(images) + 0.5


HONEST |= {
    "hard_clamps": lambda vae, x: wrapped(
        vae, lambda images: vae.encode(((images - 0.1) / 0.8).clamp(0, 1))
    ),
    "max_pooled": lambda vae, x: wrapped(
        vae, lambda images: vae.encode((2 * images + pooled(images)) / 3)
    ),
    "pixels_quantized_straight_through": lambda vae, x: wrapped(
        vae, lambda images: vae.encode(straight_through(images, 15))
    ),
    "random_resizing": lambda vae, x: rv.Victim(vae, Moved(0.0, 0.05, 0.0)),
    "deep_sigmoid": lambda vae, x: wrapped(vae, lambda images: vae.encode(deep_sigmoid(images))),
    "border_ignored": lambda vae, x: wrapped(
        vae, lambda images: vae.encode(functional.pad(images[..., 1:-1, 1:-1], (1, 1, 1, 1)))
    ),
}

# those that images of 28 x 28 make harder to tell: every change spreads over more pixels
LARGE_FAKES = (
    "gradient_block_means",
    "sigma_30",
    "steep_sigmoid",
    "saturated_sigmoid",
    "random_shift",
    "random_pixels_dropped",
    "soft_staircase",
    "ripples",
    "gradient_thinned",
)
LARGE_HONEST = (
    "wrapped",
    "hard_codec",
    "hard_clamps",
    "pixels_quantized_straight_through",
    "random_resizing",
)
