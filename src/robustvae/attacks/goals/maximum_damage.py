"""Move the reconstruction as far as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks.goals.base import Readings, distance
from robustvae.defenses import Victim
from robustvae.defenses.defense import is_posterior_mean
from robustvae.errors import ConfigError, check_choice, check_count
from robustvae.perturb import Score
from robustvae.registry import register
from robustvae.seeding import by_row, randn


@register("goal", "maximum-damage")
@final
@dataclass(frozen=True)
class MaximumDamage:
    """Move the reconstruction as far as possible: maximize ||g(T(x+d)) - g(mu(x))||_2.

    Through the encoder's mean (`PosteriorMean`), with fixed standard normal noises e:
    "mean" ||g(mu(x+d)) - g(mu(x))||, "both" E||g(mu(x+d) + e sigma(x+d)) - g(mu(x))||,
    "std" E||g(mu(x) + e sigma(x+d)) - g(mu(x))||. Any other defense T is differentiated through:
    E||g(T(x+d)) - E g(T(x))||, averaged over `draws` of its randomness where it has any.

    Args:
        through: "mean", "std" or "both".
        draws: Noises averaged; they are drawn once, since fresh ones at each step would aim the
            search at the noise.

    Raises:
        UnknownNameError: Any other `through`.
        RangeError: `draws` below 1.
        ConfigError: "std" or "both" where the victim's defense is not `PosteriorMean` (when bound).

    References:
        [Camuto21] Eq. 5.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> rv.MaximumDamage().bind(rv.Victim(vae), x, generator=g)(x, torch.arange(3)).detach()
        tensor([0., 0., 0.])
    """

    through: str = "mean"
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("through", self.through, ("mean", "std", "both"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The distance from the clean reconstruction, in pixel units; see `Goal.bind`."""
        vae = victim.vae
        if not is_posterior_mean(victim.defense):
            if self.through != "mean":
                raise ConfigError(
                    f"through={self.through!r} speaks of the encoder's spread: "
                    f"{type(victim.defense).__name__} has none, use through='mean'"
                )
            read = Readings(victim.reconstruct, victim, x, self.draws, generator)
            with torch.no_grad():
                clean = read(x, torch.arange(len(x), device=x.device)).mean(0)
            return lambda y, rows: read.averaged(
                lambda x_hat, which: distance(x_hat, clean[which]), y, rows
            )
        with torch.no_grad():
            mean = vae.encode(x).mean
            clean = vae.decode(mean).mean
        if self.through == "mean":
            return lambda y, rows: distance(vae.decode(vae.encode(y).mean).mean, clean[rows])
        streams = by_row(generator, "damage", x)
        noise = randn(self.draws, *mean.shape, like=mean, generator=streams, axis=1)

        def score(y: Tensor, rows: Tensor) -> Tensor:
            q = vae.encode(y)
            z = (q.mean if self.through == "both" else mean[rows]) + noise[:, rows] * q.stddev
            x_hat = vae.decode(z.flatten(0, 1)).mean.unflatten(0, z.shape[:2])
            return distance(x_hat, clean[rows]).mean(0)

        return score
