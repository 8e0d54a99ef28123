"""Make the victim reconstruct a target image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae import metrics
from robustvae.attacks.goals.base import Readings, distance, targets
from robustvae.defenses import Victim, reads_encoder_mean
from robustvae.errors import ConfigError, check_choice, check_count
from robustvae.models import conditionals
from robustvae.models.hierarchy import check_gaussian
from robustvae.perturb import Score
from robustvae.registry import register
from robustvae.seeding import by_row, randn


@register("goal", "output-target")
@final
@dataclass(frozen=True, eq=False)
class OutputTarget:
    """Make the victim reconstruct a target image.

    Args:
        target: Target images in [0, 1], (B, C, H, W), one per input, or (1, C, H, W) for all.
        form: "squared" maximizes -||g(T(x+d)) - target||^2 through the victim's defense T;
            "elbo" maximizes E log p(target | z) - KL(q(z|x+d) || p(z)) over `draws` fixed noises.
        draws: Noises averaged.

    Raises:
        UnknownNameError: Any other form.
        ShapeError: A target for another number of inputs (when bound).
        ConfigError: "elbo" where the victim does not read the encoder (when bound).
        UnsupportedError: "elbo" for posteriors that are not Gaussian (when bound).

    References:
        [Willetts21] Eq. 9.

    Examples:
        >>> from robustvae.attacks import OutputTarget
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> goal = OutputTarget(x[:1], form="elbo")
        >>> goal.bind(rv.Victim(vae), x, generator=g)(x, torch.arange(3)).shape
        torch.Size([3])
    """

    target: Tensor
    form: str = "squared"
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("form", self.form, ("elbo", "squared"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Closeness of the output to the target; see `Goal.bind`."""
        vae, target = victim.vae, targets(self.target, x)
        if self.form == "squared":
            read = Readings(victim.reconstruct, victim, x, self.draws, generator)
            return lambda y, rows: read.averaged(
                lambda x_hat, which: -distance(x_hat, target[which]).square(), y, rows
            )
        if not reads_encoder_mean(victim.defense):
            raise ConfigError("form='elbo' reads the encoder: use form='squared' with a defense")
        with torch.no_grad():
            check_gaussian(vae.encode(x), "form='elbo'")
        streams = by_row(generator, "target", x)
        noise = randn(self.draws, len(x), vae.latent, like=x, generator=streams, axis=1)

        def score(y: Tensor, rows: Tensor) -> Tensor:
            q = vae.encode(y)
            prior = conditionals(vae.prior(), q.mean)
            z = q.mean + noise[:, rows] * q.stddev
            likelihood = vae.decode(z.flatten(0, 1)).log_prob(
                target[rows].expand(self.draws, *y.shape).flatten(0, 1)
            )
            fit = likelihood.flatten(1).sum(1).reshape(self.draws, -1).mean(0)
            return fit - metrics.kl(q.mean, q.stddev, prior.mean, prior.stddev)

        return score
