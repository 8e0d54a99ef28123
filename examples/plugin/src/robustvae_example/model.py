"""A model: a linear encoder and a linear decoder."""

import math

import torch
from torch import Tensor, nn

from robustvae import VAE
from robustvae.models import Bernoulli, Gaussian
from robustvae.registry import register


@register("model", "linear-vae")
class LinearVAE(VAE):
    """One linear layer each way, with a constant spread.

    Args:
        latent: Dimension of the latent.
        image_shape: (C, H, W).
    """

    def __init__(self, latent: int = 4, image_shape=(1, 8, 8)) -> None:
        super().__init__()
        self.latent, self.image_shape = latent, tuple(image_shape)
        pixels = math.prod(self.image_shape)
        self.inner, self.outer = nn.Linear(pixels, latent), nn.Linear(latent, pixels)

    def encode(self, x: Tensor) -> Gaussian:
        """q(z | x), (B, d)."""
        mean = self.inner(x.flatten(1))
        return Gaussian(mean, torch.full_like(mean, 0.3))

    def decode(self, z: Tensor) -> Bernoulli:
        """p(x | z), (B, C, H, W)."""
        return Bernoulli(self.outer(z).reshape(-1, *self.image_shape))

    @property
    def config(self) -> dict:
        """The constructor's arguments, complete."""
        return {"latent": self.latent, "image_shape": list(self.image_shape)}
