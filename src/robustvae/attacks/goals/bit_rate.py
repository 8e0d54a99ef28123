"""Make an input cost many bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.defenses import Victim
from robustvae.errors import check_positive
from robustvae.models import conditionals
from robustvae.models.hierarchy import check_gaussian
from robustvae.perturb import Score
from robustvae.registry import register
from robustvae.seeding import by_row, rand


@register("goal", "bit-rate")
@final
@dataclass(frozen=True)
class BitRate:
    """Raise the bits of the coded latent: -log2 of the prior's mass on its quantization cell.

    The search adds uniform noise of one cell to the code, as codecs are trained; what is reported
    is the rate of the rounded code.

    Args:
        step: Width of a quantization cell, in latent units.

    Raises:
        RangeError: A step that is not positive.
        UnsupportedError: A prior that is not Gaussian (when bound).

    References:
        Balle et al., 2018, Eqs. 4-6 (additive noise in place of rounding).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x, g = torch.rand(3, 1, 4, 4), rv.generator(0)
        >>> bits = rv.BitRate(step=0.1).report(rv.Victim(vae), x, generator=g)
        >>> bits(x, torch.arange(3)).shape
        torch.Size([3])
    """

    step: float = 1.0

    def __post_init__(self) -> None:
        """Validate the step."""
        check_positive(self.step, "step")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Bits of the code with fixed uniform noise; see `Goal.bind`."""
        vae = victim.vae
        check_gaussian(vae.prior(), "a bit rate")
        streams = by_row(generator, "bits", x)
        noise = self.step * (rand(len(x), vae.latent, like=x, generator=streams) - 0.5)
        return lambda y, rows: self._bits(victim, vae.encode(y).mean + noise[rows])

    def report(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Bits of the rounded code, in the form of `Goal.bind`."""
        vae = victim.vae
        check_gaussian(vae.prior(), "a bit rate")
        return lambda y, rows: self._bits(
            victim, self.step * (vae.encode(y).mean / self.step).round()
        )

    def _bits(self, victim: Victim, z: Tensor) -> Tensor:
        prior = conditionals(victim.vae.prior(), z)
        # by symmetry on the side where the normal distribution function keeps its digits
        gap = -(z - prior.mean).abs()
        upper = torch.special.log_ndtr((gap + self.step / 2) / prior.stddev)
        lower = torch.special.log_ndtr((gap - self.step / 2) / prior.stddev)
        mass = upper + torch.log(-torch.expm1((lower - upper).clamp_max(-1e-12)))
        return -mass.sum(1) / math.log(2)
