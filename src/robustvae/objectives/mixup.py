"""Mixup: codes and images mixed alike shall encode and decode into each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor
from torch.distributions import Beta

from robustvae.errors import check_number, check_positive, check_type
from robustvae.models import VAE
from robustvae.objectives.base import Objective, base_terms, cost_of
from robustvae.objectives.elbo import ELBO, layer_kls
from robustvae.registry import build_fields, register
from robustvae.seeding import draw


@register("objective", "mixup")
@final
@dataclass(frozen=True)
class Mixup:
    """Another objective plus a penalty on mixtures of every image with another of its batch.

    z_m = a mu(x_i) + (1 - a) mu(x_j),  x_m = a x_i + (1 - a) x_j,  a ~ Beta(c, c)
    loss(x_i) = base(x_i) + weight (|z_m - mu(x_m)| + |g(z_m) - x_m|)

    Codes and images are mixed by the same a and with the same partner, one draw for each image.

    Args:
        weight: Weight of the penalty, at least 0.
        squared: Squared norms, and KL(q(.|x_m) || p) beside them, as the paper's code has them; it
            also draws the codes, and mixes them with another partner and weight than the images.
        concentration: c of the Beta distribution.
        base: What the penalty is added to.

    Raises:
        RangeError: A weight below 0, or a concentration that is not positive.
        DtypeError: `base` is not an objective.

    References:
        [Khan23] Eq. 9-10; Zhang et al., 2018.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> objective = rv.objectives.Mixup(base=rv.objectives.ELBO(beta=2.0))
        >>> sorted(objective.terms(vae, x, generator=rv.generator(0)))
        ['distortion', 'kl', 'loss', 'mixup_decoder', 'mixup_encoder']
    """

    weight: float = 1.0
    squared: bool = False
    concentration: float = 0.5
    base: Objective = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_number(self.weight, "weight", least=0)
        check_type(self.squared, "squared", bool)
        check_positive(self.concentration, "concentration")
        build_fields(self, base="objective")

    @property
    def cost(self) -> float:
        """Work of a training step over that of a plain ELBO; see `cost_of`."""
        return cost_of(self.base) + 1.5

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W); each is mixed with another of them.
            generator: Spent by the draws.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(
        self, vae: VAE, x: Tensor, *, generator: torch.Generator, reads: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of `base`, and "mixup_encoder" and "mixup_decoder", the norms; each (B,).

        With `squared` these are squared norms, and "mixup_kl" stands beside them, in nats.
        """
        terms = base_terms(self.base, vae, x, generator=generator, reads=reads)
        partner = _partners(len(x), generator).to(x.device)
        both = x.new_full((len(x),), self.concentration)
        a = draw(Beta(both, both), generator=generator)[:, None]
        z = vae.encode(x).mean
        z_mixed = a * z + (1 - a) * z[partner]
        x_mixed = (a * x.flatten(1) + (1 - a) * x[partner].flatten(1)).view_as(x)
        q_mixed = vae.encode(x_mixed)
        decoded = vae.decode(z_mixed).mean
        penalties = {
            "mixup_encoder": (z_mixed - q_mixed.mean).norm(dim=1),
            "mixup_decoder": (decoded - x_mixed).flatten(1).norm(dim=1),
        }
        if self.squared:
            penalties = {name: norm.square() for name, norm in penalties.items()}
            latents = draw(q_mixed, generator=generator)
            penalties["mixup_kl"] = torch.stack(layer_kls(vae, q_mixed, latents)).sum(0)
        penalty = torch.stack(list(penalties.values())).sum(0)
        return {**terms, **penalties, "loss": terms["loss"] + self.weight * penalty}

    def at(self, step: int) -> Mixup:
        """The objective at optimization step `step`, that is with the base's of that step."""
        return replace(self, base=self.base.at(step))


def _partners(n: int, generator: torch.Generator) -> Tensor:
    """Another row for each of n rows, every row once: neighbors on a random circle."""
    circle = torch.randperm(n, generator=generator, device=generator.device)
    return circle.roll(1)[circle.argsort()]
