"""Smooth encoders: the posterior shall not move far where an adversary moves the image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from robustvae import metrics
from robustvae.errors import check_count, check_number, check_positive
from robustvae.models import VAE
from robustvae.models.base import frozen
from robustvae.objectives.base import COST_OF_INPUT_GRADIENT, Objective, base_terms, cost_of
from robustvae.objectives.elbo import ELBO
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.registry import build_fields, register


@register("objective", "smooth-encoder")
@final
@dataclass(frozen=True)
class SmoothEncoder:
    """Another objective plus the squared Wasserstein distance to an adversary's posterior: SE.

    loss(x) = base(x) + weight W2^2(q(.|x), q(.|x')),  x' = argmax W2^2 over |x' - x|_inf <= radius

    In a hierarchy the distance is between the conditionals along each image's own mean path.

    Args:
        weight: Weight of the distance, per squared latent unit, at least 0.
        radius: l-infinity radius, in pixel units; x' stays in [0, 1].
        steps: Steps of projected ascent, from one start beside x, in evaluation mode.
        step: Length of a step as a share of the radius.
        base: What the distance is added to; `SelfConsistency` makes it SE-AVAE.

    Raises:
        RangeError: A weight below 0, or a radius or a count that is not positive.
        DtypeError: `base` is not an objective.

    References:
        Cemgil et al., 2020, "Adversarially robust representations with smooth encoders";
        [Kuzina22] Table 3.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("vae", architecture="conv8", latent=2)
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> objective = rv.objectives.SmoothEncoder(radius=0.1)
        >>> sorted(objective.terms(vae, x, generator=rv.generator(0)))
        ['distortion', 'kl', 'loss', 'smoothness']
    """

    weight: float = 1.0
    radius: float = 0.1
    steps: int = 5
    step: float = 0.5
    base: Objective = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_number(self.weight, "weight", least=0)
        check_positive(self.radius, "radius")
        check_count(self.steps, "steps")
        check_positive(self.step, "step")
        build_fields(self, base="objective")

    @property
    def cost(self) -> float:
        """Work of a training step over that of a plain ELBO; see `cost_of`."""
        return round(cost_of(self.base) + 1 + self.steps * COST_OF_INPUT_GRADIENT / 2, 3)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the draws and by the search's starts.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(
        self, vae: VAE, x: Tensor, *, generator: torch.Generator, reads: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of `base`, and "smoothness", the distance found; each (B,)."""
        terms = base_terms(self.base, vae, x, generator=generator, reads=reads)
        q, q_adv = vae.encode(x), vae.encode(self._adversary(vae, x, generator))
        smoothness = metrics.wasserstein2(q.mean, q.stddev, q_adv.mean, q_adv.stddev)
        loss = terms["loss"] + self.weight * smoothness
        return {**terms, "smoothness": smoothness, "loss": loss}

    def at(self, step: int) -> SmoothEncoder:
        """The objective at optimization step `step`, that is with the base's of that step."""
        return replace(self, base=self.base.at(step))

    def _adversary(self, vae: VAE, x: Tensor, generator: torch.Generator) -> Tensor:
        search = ProjectedAscent(
            steps=self.steps, restarts=1, step=self.step, schedule="constant", chunk=len(x)
        )
        with frozen(vae):
            with torch.no_grad():
                q = vae.encode(x)
                mean, stddev = q.mean, q.stddev

            def score(y: Tensor, rows: Tensor) -> Tensor:
                p = vae.encode(y)
                return metrics.wasserstein2(mean[rows], stddev[rows], p.mean, p.stddev)

            return search(score, x, Ball("linf", self.radius), generator=generator).y
