"""Self-consistency: what the decoder makes of a latent shall be encoded as that latent."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from robustvae import metrics
from robustvae.errors import check_number, check_probability, check_type
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.models.hierarchy import draw_at
from robustvae.objectives.base import Objective, base_terms, cost_of
from robustvae.objectives.elbo import ELBO
from robustvae.registry import build_fields, register
from robustvae.seeding import draw


@register("objective", "self-consistency")
@final
@dataclass(frozen=True)
class SelfConsistency:
    """Another objective plus the KL of a re-encoded reconstruction: the AVAE.

    loss(x) = base(x) + weight E_z KL(q(.|g(z')) || N(rho z, (1 - rho^2) I)),  z', z ~ q(z|x)

    As in the authors' code the average over z is in closed form and z' is a draw apart from it:

    E_z KL(...) = KL(q(.|g(z')) || N(rho mu(x), (1 - rho^2) I)) + rho^2 |sigma(x)|^2 / 2(1 - rho^2)

    `coupled` puts z' in the place of z instead: what re-encodes a draw as that very draw costs
    nothing then, while apart the posterior's own spread does.

    No gradient passes through g(z'), the mean of the decoder, so the added term trains the encoder.
    Over a `SmoothEncoder` this is SE-AVAE. In a hierarchy q(.|g(z')) stands for its conditionals
    along the mean path, mu(x) and sigma(x) for the conditionals at z'.

    Args:
        rho: Coupling of z and its re-encoding, strictly between 0 and 1. The authors' code has
            0.975 in its published command, which is the default here, and 0.8 where none is given.
        weight: Weight of the KL, at least 0; 1 is the AVAE.
        base: What the KL is added to.
        coupled: Whether z is the draw that was decoded, z'.

    Raises:
        RangeError: `rho` outside (0, 1), or a weight below 0.
        DtypeError: `base` is not an objective, or `coupled` not a truth value.

    References:
        Cemgil et al., 2020, "The autoencoding variational autoencoder", and the authors' code,
        github.com/google-deepmind/deepmind-research/tree/master/avae; [Kuzina22] Table 3.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> se_avae = rv.objectives.SelfConsistency(base=rv.objectives.SmoothEncoder(radius=0.1))
        >>> sorted(se_avae.terms(vae, x, generator=rv.generator(0)))
        ['distortion', 'kl', 'loss', 'self_consistency', 'smoothness']
    """

    rho: float = 0.975
    weight: float = 1.0
    base: Objective = field(default_factory=ELBO)
    coupled: bool = False

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_probability(self.rho, "rho")
        check_number(self.weight, "weight", least=0)
        build_fields(self, base="objective")
        check_type(self.coupled, "coupled", bool)

    @property
    def cost(self) -> float:
        """Work of a training step over that of a plain ELBO; see `cost_of`."""
        return round(cost_of(self.base) + 1 + 1 / 6, 3)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, in nats, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the draws.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(
        self, vae: VAE, x: Tensor, *, generator: torch.Generator, reads: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of `base`, and "self_consistency", the KL in nats; each (B,)."""
        terms = base_terms(self.base, vae, x, generator=generator, reads=reads)
        z, q = draw_at(vae.encode(x), generator=generator)
        if self.coupled:
            kl = _reencoded(vae, z, z, self.rho)
        else:
            spread = q.stddev.square().sum(1) * self.rho**2 / (2 * (1 - self.rho**2))
            kl = _reencoded(vae, z, q.mean, self.rho) + spread
        loss = terms["loss"] + self.weight * kl
        return {**terms, "self_consistency": kl, "loss": loss}

    def at(self, step: int) -> SelfConsistency:
        """The objective at optimization step `step`, that is with the base's of that step."""
        return replace(self, base=self.base.at(step))


@register("objective", "self-supervision")
@final
@dataclass(frozen=True)
class SelfSupervision:
    """The KL of re-encoded samples alone, to fine-tune the encoder of a trained VAE: AVAE-SS.

    loss = KL(q(.|g(z)) || N(rho z, (1 - rho^2) I)),  z ~ p(z)

    The images passed in decide only how many latents are drawn. The authors' code has no such
    objective: this is the KL of `SelfConsistency`, coupled, on draws of the prior. The decoder
    receives no gradient and runs in evaluation mode: training by `fit` leaves it as it was.

    Args:
        rho: Coupling of z and its re-encoding, strictly between 0 and 1.

    Raises:
        RangeError: `rho` outside (0, 1).

    References:
        Cemgil et al., 2020, "The autoencoding variational autoencoder"; [Kuzina22] Table 3.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> few = rv.data.load("digits")[:64]
        >>> objective = rv.objectives.SelfSupervision()
        >>> vae = rv.fit(vae, objective, few, epochs=1, generator=rv.generator(0))
    """

    rho: float = 0.975

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_probability(self.rho, "rho")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each draw, in nats, (B,).

        Args:
            vae: The model.
            x: Images, (B, C, H, W), of which only the number counts.
            generator: Spent by the draws.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """ "loss" alone: the KL in nats, (B,)."""
        check_type(vae, "vae", VAE)
        vae.check(x)
        with torch.no_grad():
            z = draw(vae.prior(), (len(x),), generator=generator)
        return {"loss": _reencoded(vae, z, z, self.rho)}

    def at(self, step: int) -> SelfSupervision:
        """The objective itself: it has no warm-up."""
        return self


def _reencoded(vae: VAE, z: Tensor, center: Tensor, rho: float) -> Tensor:
    """KL(q(.|g(z)) || N(rho center, (1 - rho^2) I)) without a gradient through g, (B,)."""
    with torch.no_grad(), frozen(vae):
        x_hat = vae.decode(z).mean
    q = vae.encode(x_hat)
    spread = torch.full_like(z, (1 - rho**2) ** 0.5)
    return metrics.kl(q.mean, q.stddev, rho * center, spread)
