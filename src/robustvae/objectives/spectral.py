"""Spectral regularization: large singular values of the weights cost something."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor, nn

from robustvae.errors import check_count, check_number
from robustvae.models import VAE
from robustvae.objectives.base import Objective, base_terms, cost_of
from robustvae.objectives.elbo import ELBO
from robustvae.registry import build_fields, register
from robustvae.seeding import randn


@register("objective", "spectral-regularization")
@final
@dataclass(frozen=True)
class SpectralRegularization:
    """Another objective plus the spectral norms of all dense and convolutional weights.

    loss(x) = base(x) + weight sum_i s_i,  s_i the greatest singular value of weight i

    A convolution's weight is read as a matrix of its outputs by all else. The singular values are
    estimated from below, by power iteration.

    Args:
        weight: Weight of the sum, in nats, at least 0.
        steps: Steps of the power iteration, from a random vector.
        base: What the sum is added to.

    Raises:
        RangeError: A weight below 0, or a count below 1.
        DtypeError: `base` is not an objective.

    References:
        Vahdat & Kautz, 2020, section 3.2; Yoshida & Miyato, 2017.

    Examples:
        >>> import robustvae as rv
        >>> vae = rv.models.create("nvae", image_shape=(1, 8, 8), channels=4)
        >>> x = rv.data.load("digits", split="test").x[:3]
        >>> objective = rv.objectives.SpectralRegularization(weight=0.1)
        >>> objective(vae, x, generator=rv.generator(0)).shape
        torch.Size([3])
    """

    weight: float = 0.1
    steps: int = 4
    base: Objective = field(default_factory=ELBO)

    def __post_init__(self) -> None:
        """Validate the settings."""
        check_number(self.weight, "weight", least=0)
        check_count(self.steps, "steps")
        build_fields(self, base="objective")

    @property
    def cost(self) -> float:
        """Work of a training step over that of a plain ELBO; see `cost_of`."""
        return cost_of(self.base)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the draws and by the power iterations' starts.
        """
        return self.terms(vae, x, generator=generator)["loss"]

    def terms(
        self, vae: VAE, x: Tensor, *, generator: torch.Generator, reads: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of `base`, and "spectral", the sum, the same for every image; each (B,)."""
        terms = base_terms(self.base, vae, x, generator=generator, reads=reads)
        norms = [
            _spectral_norm(layer.weight, self.steps, generator)
            for layer in vae.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        ]
        spectral = sum(norms, x.new_zeros(())).expand(len(x))
        return {**terms, "spectral": spectral, "loss": terms["loss"] + self.weight * spectral}

    def at(self, step: int) -> SpectralRegularization:
        """The objective at optimization step `step`, that is with the base's of that step."""
        return replace(self, base=self.base.at(step))


def _spectral_norm(weight: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    matrix = weight.flatten(1)
    with torch.no_grad():
        right = randn(matrix.shape[1], like=matrix, generator=generator)
        for _ in range(steps):
            left = nn.functional.normalize(matrix @ right, dim=0)
            right = nn.functional.normalize(matrix.mT @ left, dim=0)
    return left @ matrix @ right
