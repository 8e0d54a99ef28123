"""A defense: round the pixels, then read the posterior mean."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae import VAE, PosteriorMean
from robustvae.defenses import Cost
from robustvae.registry import register


@register("defense", "rounded")
@final
@dataclass(frozen=True)
class Rounded:
    """Round every pixel to one of a few levels, with a straight-through gradient.

    Args:
        levels: How many levels, at least 2.
    """

    levels: int = 16
    is_random = False
    reads_encoder_mean = False
    cost = Cost(gradients=0, forwards=1)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images (B, C, H, W)."""
        steps = self.levels - 1
        rounded = x + ((x * steps).round() / steps - x).detach()
        return PosteriorMean()(vae, rounded, generator=generator)
