"""Models whose optima are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from robustvae.models import VAE, create, wrap
from robustvae.models.likelihoods import Gaussian
from robustvae.seeding import generator, randn


def tiny_vae(latent: int = 3, side: int = 4, *, dtype: torch.dtype = torch.float64) -> VAE:
    """An untrained VAE of dense layers with tanh, smooth everywhere, on side x side images.

    Examples:
        >>> from robustvae.testing import tiny_vae
        >>> tiny_vae().image_shape
        (1, 4, 4)
    """
    options = {"architecture": "mlp", "activation": "tanh", "hidden": [16], "latent": latent}
    vae = create("vae", image_shape=(1, side, side), seed=5, **options)
    return vae.to(dtype).eval()


def linear_vae(latent: int = 3, side: int = 4) -> tuple[VAE, Tensor, Tensor]:
    """A linear-Gaussian VAE in float64, with its encoder (d, D) and decoder (D, d) matrices.

    The encoder is N(W x, 0.1^2 I), the decoder N(V z, I): the optimum of an attack in an l2 ball
    is a singular direction.

    Examples:
        >>> from robustvae.testing import linear_vae
        >>> vae, w, v = linear_vae()
        >>> w.shape, v.shape
        (torch.Size([3, 16]), torch.Size([16, 3]))
    """
    like, draws = torch.zeros(0, dtype=torch.float64), generator(2)
    pixels = side * side
    w = randn(latent, pixels, like=like, generator=draws) / side
    v = randn(pixels, latent, like=like, generator=draws) / side
    vae = wrap(
        encode=lambda x: Gaussian(x.flatten(1) @ w.mT, x.new_full((len(x), latent), 0.1)),
        decode=lambda z: Gaussian(
            (z @ v.mT).reshape(-1, 1, side, side), z.new_ones(len(z), 1, side, side)
        ),
        latent=latent,
        image_shape=(1, side, side),
    )
    return vae, w, v


def gray_images(count: int, side: int = 4) -> Tensor:
    """Images near mid-gray, (count, 1, side, side), float64: small steps stay in [0, 1]."""
    like = torch.zeros(0, dtype=torch.float64)
    return 0.5 + 0.02 * randn(count, 1, side, side, like=like, generator=generator(7)).clamp(-2, 2)
