"""Lower a metric of the reconstruction: the number that is reported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from robustvae.attacks.goals.base import Readings
from robustvae.defenses import Victim
from robustvae.errors import check_choice, check_count
from robustvae.metrics import default_variant, ms_ssim, ms_ssim_terms
from robustvae.perturb import Score
from robustvae.registry import register

_KNEE = 0.05  # below this a similarity term is continued by its tangent: a power at 0 has none
_LEAST_ERROR = 1e-10  # mean squared error below which two images count as equal: 100 dB


@register("goal", "metric-drop")
@final
@dataclass(frozen=True)
class MetricDrop:
    """Lower a named metric between the victim's clean output and its output under attack.

    The reported score is minus the metric itself. For MS-SSIM the search climbs a stand-in that
    has a gradient everywhere: minus the sum of the scales' weighted logarithms, each continued by
    its tangent where the term is near 0 or below, where the metric itself is cut off at 0.

    Args:
        metric: "ms_ssim", or "psnr" in dB.
        center: What the output is compared with: "own", the victim's own clean output; "mean", the
            undefended model's clean reconstruction g(mu(x)), as in [Kuzina22]'s tables; "input",
            the clean input.
        draws: Draws of the victim's randomness that are averaged, where it has any.

    Raises:
        UnknownNameError: Any other metric or center.
        RangeError: `draws` below 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 8, 8))
        >>> x, g = torch.rand(3, 1, 8, 8), rv.generator(0)
        >>> rv.MetricDrop().report(rv.Victim(vae), x, generator=g)(x, torch.arange(3))
        tensor([-1., -1., -1.])
    """

    metric: Literal["ms_ssim", "psnr"] = "ms_ssim"
    center: Literal["own", "mean", "input"] = "own"
    draws: int = 8

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("metric", self.metric, ("ms_ssim", "psnr"))
        check_choice("center", self.center, ("input", "mean", "own"))
        check_count(self.draws, "draws")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The stand-in for minus the metric; see `Goal.bind`."""
        return self._bound(victim, x, generator, search=True)

    def report(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """Minus the metric, in the form of `Goal.bind`."""
        return self._bound(victim, x, generator, search=False)

    def _bound(
        self, victim: Victim, x: Tensor, generator: torch.Generator, *, search: bool
    ) -> Score:
        read = Readings(victim.reconstruct, victim, x, self.draws, generator)
        with torch.no_grad():
            if self.center == "input":
                clean = x
            elif self.center == "mean":
                clean = victim.vae.decode(victim.vae.encode(x).mean).mean
            else:
                clean = read(x, torch.arange(len(x), device=x.device)).mean(0)
        if self.metric == "psnr":

            def loudness(y: Tensor, rows: Tensor) -> Tensor:
                error = (read(y, rows) - clean[rows]).flatten(2).square().mean(2)
                return 10 * error.clamp_min(_LEAST_ERROR).log10().mean(0)

            return loudness
        clean, variant = clean.clamp(0, 1), default_variant(x)

        def drop(y: Tensor, rows: Tensor) -> Tensor:
            total = torch.zeros_like(y.flatten(1)[:, 0])
            for output in read.each(y, rows):
                image, center = output.clamp(0, 1), clean[rows]
                if search:
                    total = total - similarity_stand_in(image, center, variant)
                else:
                    total = total - ms_ssim(image, center, variant=variant)
            return total / read.draws

        return drop


def similarity_stand_in(x: Tensor, y: Tensor, variant: str) -> Tensor:
    """The logarithm of MS-SSIM, continued by tangents where a term is small, (B,).

    Args:
        x: Images in [0, 1], (B, C, H, W).
        y: Images in [0, 1], the same shape.
        variant: As in `robustvae.metrics.ms_ssim`.
    """
    terms, weights = ms_ssim_terms(x, y, variant=variant)
    small = terms < _KNEE
    logs = torch.where(
        small, math.log(_KNEE) + (terms - _KNEE) / _KNEE, terms.clamp_min(_KNEE).log()
    )
    return (weights.unsqueeze(1) * logs).sum(0)
