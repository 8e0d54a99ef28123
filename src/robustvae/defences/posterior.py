"""Latents from the posterior given one image: the encoder's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.models.base import VAE
from robustvae.seeding import draw


@final
@dataclass(frozen=True)
class PosteriorMean:
    """The mean of the encoder's posterior: no defence, and the usual way to read a VAE.

    Example:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorMean()(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        return vae.encode(x).mean


@final
@dataclass(frozen=True)
class PosteriorSample:
    """One draw from the encoder's posterior, or the mean of several.

    Args:
        draws: How many draws are averaged.

    Example:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> rv.PosteriorSample()(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    draws: int = 1

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        return draw(vae.encode(x), (self.draws,), generator=generator).mean(0)
