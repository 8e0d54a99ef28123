"""Move the latent code towards that of a target image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks.goals.base import targets
from robustvae.attacks.goals.divergence import DIVERGENCES, apart, check_layers
from robustvae.defenses import Victim
from robustvae.errors import check_choice, check_count
from robustvae.perturb import Score
from robustvae.registry import register


@register("goal", "latent-target")
@final
@dataclass(frozen=True, eq=False)
class LatentTarget:
    """Move the latent code towards that of a target image: maximize -D(q(.|x+d), q(.|target)).

    Args:
        target: Target images, (B, C, H, W), one per input, or (1, C, H, W) for all.
        divergence: As in `LatentShift`; "kl" is the attack of the papers.
        layers: As in `LatentShift`: the bottom layer for a DLGM, all (None) for a Seatbelt-VAE.
        draws: As in `LatentShift`.

    Raises:
        UnknownNameError: Any other divergence.
        ShapeError: A target for another number of inputs (when bound).

    References:
        Tabacof et al., 2016; [Willetts21] Eq. 10-12, who print q(.|x) for the target's posterior.

    Examples:
        >>> from robustvae.attacks import LatentTarget
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> score = LatentTarget(x[:1]).bind(rv.Victim(vae), x, generator=g)
        >>> score(x, torch.arange(3)).argmax()
        tensor(0)
    """

    target: Tensor
    divergence: str = "kl"
    layers: tuple[int, ...] | None = None
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("divergence", self.divergence, DIVERGENCES)
        check_layers(self.layers)
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Minus the divergence from the target's code; see `Goal.bind`."""
        gap = apart(
            victim,
            x,
            targets(self.target, x),
            divergence=self.divergence,
            layers=self.layers,
            draws=self.draws,
            generator=generator,
        )
        return lambda y, rows: -gap(y, rows)
