"""An objective: the ELBO without its KL term."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae import VAE
from robustvae.registry import register


@register("objective", "plain-loss")
@final
@dataclass(frozen=True)
class PlainLoss:
    """The distortion at the posterior mean, in nats, with no prior at all."""

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,)."""
        return -vae.decode(vae.encode(x).mean).log_prob(x).flatten(1).sum(1)

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss under "loss"."""
        return {"loss": self(vae, x, generator=generator)}

    def at(self, step: int) -> "PlainLoss":
        """The same at every step."""
        return self
