"""The evidence lower bound, with a weight on its KL term."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae import metrics
from robustvae.errors import check_count, check_number, check_type
from robustvae.models import VAE, Distribution, Gaussian, conditionals
from robustvae.models.hierarchy import draw_at
from robustvae.objectives.noise import InputNoise, add_noise, checked_noise, scaled_noise
from robustvae.registry import register


@register("objective", "elbo")
@final
@dataclass(frozen=True)
class ELBO:
    """The negative ELBO of each image, in nats.

    loss(x) = -E_q[log p(x|z)] + beta KL(q(z|x) || p(z)),  z ~ q(z|x)

    With `input_noise` the posterior in both terms is q(z|x + s n), n standard normal: the model
    reads a noisy image and explains the clean one. Trained so, it can be smoothed by the same noise
    at test time, which certifies it, and without any noise it resists attacks.

    The expectation takes one draw of z and of n. The KL is in closed form where posterior and prior
    are Gaussian, and otherwise estimated at the same draw. In a hierarchy every layer has its own
    KL, between its conditionals at the draw.

    Args:
        beta: Weight of the KL, at least 0; 1 is the ELBO, anything else a beta-VAE.
        warmup: Optimization steps over which training raises the weight from 0 to `beta`,
            linearly. Called directly, the objective uses `beta`.
        free_bits: Nats of KL that every layer may spend for free, on the batch's average: below
            them its KL stands in the loss as this constant. At least 0.
        input_noise: Standard deviation s of the noise on the encoder's input, in pixel units; a
            pair (low, high) draws s for every image, uniformly. 0 is none.
        noise_warmup: Optimization steps over which training raises s from 0, linearly.

    Raises:
        DtypeError: `input_noise` is neither a number nor a pair of them.
        RangeError: `beta`, `warmup`, `free_bits`, `input_noise` or `noise_warmup` below 0.

    References:
        Kingma & Welling, 2014, Eq. 10; Higgins et al., 2017, Eq. 4; [Willetts21] Eq. 4;
        Kingma et al., 2016, Eq. 15 (free bits); Im et al., 2017, Eq. 6 (noise).

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> rv.objectives.ELBO(beta=2.0)(vae, x, generator=rv.generator(0)).shape
        torch.Size([3])
        >>> rv.objectives.ELBO(beta=2.0, warmup=100).at(25).beta
        0.5
        >>> rv.objectives.ELBO(input_noise=0.25)(vae, x, generator=rv.generator(0)).shape
        torch.Size([3])
    """

    beta: float = 1.0
    warmup: int = 0
    free_bits: float = 0.0
    input_noise: InputNoise = 0.0
    noise_warmup: int = 0

    def __post_init__(self) -> None:
        """Validate the weights and the noise."""
        check_number(self.beta, "beta", least=0)
        check_count(self.warmup, "warmup", least=0)
        check_number(self.free_bits, "free_bits", least=0)
        object.__setattr__(self, "input_noise", checked_noise(self.input_noise))
        check_count(self.noise_warmup, "noise_warmup", least=0)

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
        """ "loss", and what it is made of; nats, each (B,).

        That is the "distortion" -log p(x|z) and the "kl"; of several layers also each layer's,
        "kl_1" next to the data.
        """
        check_type(vae, "vae", VAE)
        x_noisy = add_noise(x if reads is None else reads, self.input_noise, generator=generator)
        z, q = draw_at(vae.encode(x_noisy), generator=generator)
        likelihood, prior = vae.given(z)
        distortion = -likelihood.log_prob(x).flatten(1).sum(1)
        layers = layer_kls(vae, q, z, prior)
        kl_sum = sum((at_least(kl, self.free_bits) for kl in layers), torch.zeros_like(distortion))
        return {
            "loss": distortion + self.beta * kl_sum,
            "distortion": distortion,
            "kl": torch.stack(layers).sum(0),
            **(by_layer(layers) if len(layers) > 1 else {}),
        }

    def at(self, step: int) -> ELBO:
        """The objective at optimization step `step`, weight and noise warmed up so far."""
        return replace(
            self,
            beta=self.beta * warmed(step, self.warmup),
            warmup=0,
            input_noise=scaled_noise(self.input_noise, warmed(step, self.noise_warmup)),
            noise_warmup=0,
        )


def layer_kls(
    vae: VAE, posterior: Distribution, z: Tensor, prior: Distribution | None = None
) -> list[Tensor]:
    """The KL of every layer at the draw `z` of the posterior, from the data upwards; (B,) each.

    Between Gaussians in closed form, given the layers of `z` it depends on; otherwise the whole
    KL is estimated at the draw. `prior` is the model's own unless it is given.
    """
    widths = vae.widths or (vae.latent,)
    prior = vae.prior() if prior is None else prior
    q, p = conditionals(posterior, z), conditionals(prior, z)
    if not (isinstance(q, Gaussian) and isinstance(p, Gaussian)):
        ratio = posterior.log_prob(z) - prior.log_prob(z)
        return [part.flatten(1).sum(1) for part in ratio.split(widths, dim=1)]
    parts = [part.split(widths, dim=-1) for part in (q.mean, q.stddev, p.mean, p.stddev)]
    return [metrics.kl(*layer) for layer in zip(*parts, strict=True)]


def by_layer(layers: list[Tensor]) -> dict[str, Tensor]:
    """The KLs of the layers under the names "kl_1", "kl_2", ..."""
    return {f"kl_{number}": kl for number, kl in enumerate(layers, 1)}


def at_least(penalty: Tensor, free_bits: float, judged_by: Tensor | None = None) -> Tensor:
    """`penalty`, (B,), or the constant `free_bits` where the average KL of the batch is no larger.

    The KL is the penalty itself unless it is given.
    """
    kl = penalty if judged_by is None else judged_by
    return torch.where(kl.mean() > free_bits, penalty, free_bits) if free_bits else penalty


def warmed(step: int, warmup: int) -> float:
    """The share of a weight reached at `step` when it rises linearly over `warmup` steps."""
    return min(1.0, step / warmup) if warmup else 1.0
