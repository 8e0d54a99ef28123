"""The evidence lower bound, with a weight on its KL term."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae.errors import check_count, check_number, check_type
from robustvae.models import VAE, Distribution, Gaussian
from robustvae.seeding import draw


@final
@dataclass(frozen=True)
class ELBO:
    """The negative ELBO of each image, in nats.

    loss(x) = -E_q[log p(x|z)] + beta KL(q(z|x) || p(z)),  z ~ q(z|x)

    The expectation takes one draw of z. The KL is in closed form where posterior and prior are
    Gaussian, and otherwise estimated at the same draw.

    Args:
        beta: Weight of the KL, at least 0; 1 is the ELBO, anything else a beta-VAE.
        warmup: Optimisation steps over which training raises the weight from 0 to `beta`,
            linearly. Called directly, the objective uses `beta`.

    Raises:
        RangeError: `beta` or `warmup` below 0.

    References:
        Kingma & Welling, 2014, Eq. 10; Higgins et al., 2017, Eq. 4.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> rv.objectives.ELBO(beta=2.0)(vae, x, generator=rv.generator(0)).shape
        torch.Size([3])
        >>> rv.objectives.ELBO(beta=2.0, warmup=100).at(25)
        ELBO(beta=0.5, warmup=0)
    """

    beta: float = 1.0
    warmup: int = 0

    def __post_init__(self) -> None:
        """Refuse weights that make no sense."""
        check_number(self.beta, "beta", least=0)
        check_count(self.warmup, "warmup", least=0)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, in nats, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the draws.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """ "loss", and the "distortion" -log p(x|z) and "kl" it is made of; nats, each (B,)."""
        check_type(vae, "vae", VAE)
        posterior = vae.encode(x)
        z = draw(posterior, generator=generator)
        distortion = -vae.decode(z).log_prob(x).flatten(1).sum(1)
        kl = _kl(posterior, vae.prior(), z)
        return {"loss": distortion + self.beta * kl, "distortion": distortion, "kl": kl}

    def at(self, step: int) -> ELBO:
        """The objective at optimisation step `step`, with the weight warmed up so far."""
        warm = min(1.0, step / self.warmup) if self.warmup else 1.0
        return replace(self, beta=self.beta * warm, warmup=0)


def _kl(posterior: Distribution, prior: Distribution, z: Tensor) -> Tensor:
    """KL(posterior || prior), (B,): exact between Gaussians, otherwise estimated at the draw z."""
    if isinstance(posterior, Gaussian) and isinstance(prior, Gaussian):
        ratio = posterior.stddev / prior.stddev
        shift = (posterior.mean - prior.mean) / prior.stddev
        return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(1)
    return (posterior.log_prob(z) - prior.log_prob(z)).flatten(1).sum(1)
