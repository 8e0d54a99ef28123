"""Autoencoders in the style of latent-diffusion models, for trying large models: no weights.

Audit the larger one on a few pictures of 256 x 256 within ten minutes:

    robustvae audit examples/latent_autoencoder.py:build --data photos/ --minutes 10
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two normalized convolutions beside a shortcut."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inside), nn.GroupNorm(4, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Every place of a feature map looks at every other one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(4, channels), nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).view(b, c, h * w).transpose(1, 2)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        mixed = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + mixed.transpose(1, 2).reshape(b, c, h, w)


class LatentAutoencoder(nn.Module):
    """Encoder and decoder with as many halvings of the side as there are widths but one.

    Pictures lie in [-1, 1]; codes are (channels, side / 2^halvings, ...), with a spread or without.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (16, 32, 32, 32),
        channels: int = 4,
        side: int = 256,
        spread: bool = True,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.spread = spread
        self.config = {"scaling_factor": 0.18, "sample_size": side, "in_channels": 3}
        last = widths[-1]
        middle: list[nn.Module] = [Residual(last, last)]
        if attention:
            middle.append(Attention(last))
        down: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        up: list[nn.Module] = []
        for inside, outside in itertools.pairwise(widths):
            down += [Residual(inside, outside), nn.Conv2d(outside, outside, 3, 2, 1)]
            up = [nn.Upsample(scale_factor=2), Residual(outside, inside), *up]
        self.encoder = nn.Sequential(
            *down, *middle, nn.GroupNorm(4, last), nn.SiLU(),
            nn.Conv2d(last, channels * (2 if spread else 1), 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, last, 3, padding=1), Residual(last, last), *up,
            nn.GroupNorm(4, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 3, 3, padding=1),
        )  # fmt: skip

    def encode(self, x: Tensor) -> Any:
        """Codes: a Gaussian as `latent_dist`, or `latents` alone."""
        moments = self.encoder(x)
        if not self.spread:
            return SimpleNamespace(latents=moments)
        mean, log_var = moments.chunk(2, dim=1)
        std = torch.exp(0.5 * log_var.clamp(-30, 20))
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=std))

    def decode(self, z: Tensor) -> Any:
        """The picture of a code, as `sample`."""
        return SimpleNamespace(sample=self.decoder(z))

    def forward(self, x: Tensor) -> Any:
        """The reconstruction of pictures."""
        code = self.encode(x)
        return self.decode(code.latent_dist.mean if self.spread else code.latents)


def build() -> LatentAutoencoder:
    """About 260,000 parameters, 256 x 256 pictures, codes of 4,096 numbers with a spread."""
    return LatentAutoencoder()


def build_tiny() -> LatentAutoencoder:
    """A smaller network with larger codes: 32,768 numbers without a spread."""
    return LatentAutoencoder((8, 16, 16), channels=8, spread=False, attention=False)


if __name__ == "__main__":
    x = torch.zeros(1, 3, 32, 32)
    model = build_tiny()
    print(f"codes {tuple(model.encode(x).latents.shape)} of images {tuple(x.shape)}")
