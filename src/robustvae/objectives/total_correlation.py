"""The KL taken apart into index-code information, total correlation and the coordinates' KL."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae.errors import (
    RangeError,
    ShapeError,
    UnsupportedError,
    check_choice,
    check_count,
    check_number,
    check_type,
)
from robustvae.models import VAE, Distribution, Gaussian, conditionals
from robustvae.objectives.elbo import at_least, by_layer, layer_kls, warmed
from robustvae.objectives.noise import InputNoise, add_noise, checked_noise, scaled_noise
from robustvae.registry import register
from robustvae.seeding import draw

SAMPLINGS = ("mws", "mss")


@register("objective", "total-correlation")
@final
@dataclass(frozen=True)
class TotalCorrelation:
    """The beta-TCVAE loss of each image, in nats; on the top layer of a hierarchy.

    loss(x) = -log p(x|z) + w (alpha (log q(z|x) - log q(z)) + beta (log q(z) - sum_j log q(z_j))
              + gamma sum_j (log q(z_j) - log p(z_j))),  z ~ q(z|x), w = 1

    The three terms are index-code information, total correlation and the KL of the coordinates;
    q(z) is the aggregate posterior over the training images, estimated from the batch. In a
    hierarchy the terms are those of z^L with q(z^L | z^(L-1)) in place of q(z|x), the batch's draws
    of z^(L-1) standing for its images, and the layers below have their plain KLs: a beta-TCDLGM of
    `dlgm`, a Seatbelt-VAE of `seatbelt`.

    Warning:
        Batch estimates of log q(z) are for gradients, not for reports: minibatch-weighted sampling
        is too low, by log N exactly where the batch is the whole set. The sum of the three terms
        at weight 1 is log q(z|x) - log p(z) whatever the estimate. The code of [Kuzina22] sums over
        the draws of one posterior instead, which weighs less: its models reconstruct better.

    Args:
        beta: Weight of the total correlation, at least 0.
        size: Number N of training images; None takes each batch for the whole set. In a hierarchy
            the aggregate runs over the continuous z^(L-1), and N stays the number of images.
        alpha: Weight of the index-code information, at least 0.
        gamma: Weight of the coordinates' KL, at least 0.
        sampling: "mws", log q(z) = logsumexp_j log q(z|x_j) - log(N M) over the M of the batch; or
            "mss", an average whose weights are 1/N for the image's own posterior and equal for
            the others: unbiased for q(z). (Chen et al. weigh one of the others differently;
            the mean over their order is this.)
        weight: w, of all terms but the likelihood's, those of lower layers included. At least 0.
        warmup: Optimization steps over which training raises w from 0 to `weight`, linearly.
        free_bits: Nats that every layer may spend for free, on the batch's average: a layer whose
            KL is lower pays this constant. The top layer's KL is the sum of its three terms at
            weight 1, which no estimate of log q(z) biases. At least 0.
        input_noise: Standard deviation of noise on the encoder's input, or a pair (low, high), as
            in `ELBO`; q(z) is then the aggregate over noisy images.
        noise_warmup: Optimization steps over which training raises the noise from 0, linearly.

    Raises:
        UnknownNameError: Any other sampling.
        RangeError: A weight below 0, or a batch of more than `size` images.
        ShapeError: "mss" on a single image.
        UnsupportedError: A posterior or a prior that is not Gaussian.

    References:
        Chen et al., 2018, Eq. 2, 4 and appendix C; [Willetts21] Eq. 8.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> images = rv.data.load("digits")
        >>> objective = rv.objectives.TotalCorrelation(beta=5.0, size=len(images))
        >>> sorted(objective.terms(vae, images.x[:8], generator=rv.generator(0)))
        ['dimension_kl', 'distortion', 'index_code', 'loss', 'total_correlation']
    """

    beta: float = 1.0
    size: int | None = None
    alpha: float = 1.0
    gamma: float = 1.0
    sampling: str = "mws"
    weight: float = 1.0
    warmup: int = 0
    free_bits: float = 0.0
    input_noise: InputNoise = 0.0
    noise_warmup: int = 0

    def __post_init__(self) -> None:
        """Validate the weights and the noise."""
        for name in ("alpha", "beta", "gamma", "weight", "free_bits"):
            check_number(getattr(self, name), name, least=0)
        if self.size is not None:
            check_count(self.size, "size")
        check_choice("sampling", self.sampling, SAMPLINGS)
        check_count(self.warmup, "warmup", least=0)
        object.__setattr__(self, "input_noise", checked_noise(self.input_noise))
        check_count(self.noise_warmup, "noise_warmup", least=0)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, in nats, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W); the batch that stands for the training images.
            generator: Spent by the draws.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(
        self, vae: VAE, x: Tensor, *, generator: torch.Generator, reads: Tensor | None = None
    ) -> dict[str, Tensor]:
        """ "loss", and what it is made of; nats, each (B,).

        That is "distortion", "index_code", "total_correlation", "dimension_kl"; of several layers
        also the KLs of the lower ones, "kl_1" next to the data.
        """
        check_type(vae, "vae", VAE)
        posterior = vae.encode(
            add_noise(x if reads is None else reads, self.input_noise, generator=generator)
        )
        z = draw(posterior, generator=generator)
        distortion = -vae.decode(z).log_prob(x).flatten(1).sum(1)
        lower = layer_kls(vae, posterior, z)[:-1]
        top = (vae.widths or (vae.latent,))[-1]
        q, p = _top(posterior, z, top), _top(vae.prior(), z, top)
        z_top = z[:, -top:]
        log_joint, log_product = log_aggregate(z_top, q, self.size or len(x), self.sampling)
        index_code = q.log_prob(z_top).sum(1) - log_joint
        total_correlation = log_joint - log_product
        dimension_kl = log_product - p.log_prob(z_top).sum(1)
        weight_sum = (
            self.alpha * index_code + self.beta * total_correlation + self.gamma * dimension_kl
        )
        kl_sum = index_code + total_correlation + dimension_kl
        penalties = [at_least(kl, self.free_bits) for kl in lower]
        penalties.append(at_least(weight_sum, self.free_bits, judged_by=kl_sum))
        return {
            "loss": distortion + self.weight * torch.stack(penalties).sum(0),
            "distortion": distortion,
            "index_code": index_code,
            "total_correlation": total_correlation,
            "dimension_kl": dimension_kl,
            **by_layer(lower),
        }

    def at(self, step: int) -> TotalCorrelation:
        """The objective at optimization step `step`, w and noise warmed up so far."""
        return replace(
            self,
            weight=self.weight * warmed(step, self.warmup),
            warmup=0,
            input_noise=scaled_noise(self.input_noise, warmed(step, self.noise_warmup)),
            noise_warmup=0,
        )


def log_aggregate(
    z: Tensor, posteriors: Gaussian, size: int, sampling: str = "mws"
) -> tuple[Tensor, Tensor]:
    """log q(z) and sum_j log q(z_j) of draws, each from one of the posteriors of a batch.

    Args:
        z: Latents, row i drawn from posterior i, (M, w).
        posteriors: The Gaussians of the batch, (M, w).
        size: Number N of training images.
        sampling: "mws" or "mss"; see `TotalCorrelation`.

    Returns:
        Two estimates in nats, (M,) each.

    Raises:
        RangeError: More posteriors than `size`.
        ShapeError: "mss" of one posterior out of several.
    """
    batch = len(z)
    if batch > size:
        raise RangeError(f"size must be at least the batch's {batch} images, got {size}")
    if sampling == "mws":
        log_weight = z.new_full((batch, batch), -math.log(size * batch))
    elif batch == 1 < size:
        raise ShapeError("mss wants batches of at least 2 images, got 1")
    else:
        others = (size - 1) / (size * max(batch - 1, 1))
        log_weight = z.new_full((batch, batch), others).fill_diagonal_(1 / size).log()
    pairs = Gaussian(posteriors.mean[None], posteriors.stddev[None]).log_prob(z[:, None])
    joint = (pairs.sum(2) + log_weight).logsumexp(1)
    product = (pairs + log_weight[..., None]).logsumexp(1).sum(1)
    return joint, product


def _top(distribution: Distribution, z: Tensor, width: int) -> Gaussian:
    """The top layer's Gaussian given the layer of `z` it depends on."""
    layers = conditionals(distribution, z)
    if not isinstance(layers, Gaussian):
        raise UnsupportedError(
            f"total correlation wants Gaussian latents, got {type(layers).__name__}"
        )
    return Gaussian(layers.mean[..., -width:], layers.stddev[..., -width:])
