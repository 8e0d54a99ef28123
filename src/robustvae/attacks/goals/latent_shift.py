"""Move the latent code away from where it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks.goals.divergence import DIVERGENCES, apart, check_layers
from robustvae.defenses import Victim
from robustvae.errors import check_choice, check_count
from robustvae.perturb import Score
from robustvae.registry import register


@register("goal", "latent-shift")
@final
@dataclass(frozen=True)
class LatentShift:
    """Move the latent code away from where it was: maximize D(q(.|x+d), q(.|x)).

    Pointed at a victim that reads its latent off the encoder (`PosteriorMean`,
    `PosteriorSample`) the divergence is between the encoder's posteriors. Any other defense has
    no such density: the score is then "latent", with gradients through the defense.

    Warning:
        All of these have gradient 0 at d = 0; searches must start elsewhere, as ours do.

    Args:
        divergence: "kl" is KL(q(.|x+d) || q(.|x)), "reverse_kl" the other way round,
            "symmetric_kl" the mean of both, in nats; "wasserstein2" the squared 2-Wasserstein
            distance and "means" ||mu(x+d) - mu(x)||^2; "samples" the mean squared distance of
            draws from both posteriors, by `draws` fixed noises; "latent" ||T(x+d) - T(x)||^2 of
            the codes that the victim's own defense T reads.
        layers: Which layers of a hierarchy count, by their place in `vae.widths`: (0,) is the one
            next to the data; None for all.
        draws: Noises averaged by "samples", and by "latent" where the defense is random.

    Raises:
        UnknownNameError: Any other divergence.
        RangeError: `draws` below 1; layers that are none, named twice, or (when bound) not there.
        UnsupportedError: `layers` of a model that has none, or a divergence other than "means"
            and "latent" for posteriors that are not Gaussian (when bound).

    References:
        [Kuzina22] Eq. 3 and 63-66; [Willetts21] Eq. 10-12.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> score = rv.LatentShift().bind(rv.Victim(vae), x, generator=g)
        >>> score(x, torch.arange(3)).abs().max() < 1e-6
        tensor(True)
    """

    divergence: str = "symmetric_kl"
    layers: tuple[int, ...] | None = None
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_layers(self.layers)
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The divergence from the clean code; see `Goal.bind`."""
        return apart(
            victim,
            x,
            x,
            divergence=self.divergence,
            layers=self.layers,
            draws=self.draws,
            generator=generator,
        )
