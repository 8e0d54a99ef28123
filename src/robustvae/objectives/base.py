"""What every objective offers to training."""

from __future__ import annotations

import inspect
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from robustvae.errors import ConfigError
from robustvae.models import VAE
from robustvae.registry import family_base

COST_OF_INPUT_GRADIENT = 2 / 3
"""Of a plain step: forward and backward to the input, without the weights' own products."""


@family_base("objective")
@runtime_checkable
class Objective(Protocol):
    """A loss per image, to be minimized."""

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The loss of each image, (B,).

        Args:
            vae: The model.
            x: Images in [0, 1], (B, C, H, W).
            generator: Spent by the draws.
        """

    def terms(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss under "loss", and what it is made of, to be logged; each (B,)."""

    def at(self, step: int) -> Self:
        """The objective to use at optimization step `step`, counted from 0."""


def cost_of(objective: Objective) -> float:
    """Work of one training step over that of a plain ELBO's: its attribute `cost`, else 1.

    A plain step passes encoder and decoder once, forward and backward. Counted are such passes: a
    network alone is a half, a pass without the weights' gradients two thirds, without any gradient
    one third. On conv28 a step measures up to a quarter less than this count.
    """
    return float(getattr(objective, "cost", 1.0))


def base_terms(
    base: Objective, vae: VAE, x: Tensor, *, generator: torch.Generator, reads: Tensor | None
) -> dict[str, Tensor]:
    """Return the terms of a base that reads `reads` instead of `x`, where that is not None.

    `check_reads` says whether it can.
    """
    if reads is None:
        return base.terms(vae, x, generator=generator)
    return base.terms(vae, x, generator=generator, reads=reads)  # type: ignore[call-arg]


def check_reads(base: Objective) -> None:
    """Raise unless an objective, and what it is built on, can read other images than it explains.

    Raises:
        ConfigError: A `terms` that takes no argument `reads`.
    """
    inner = getattr(base, "base", None)
    if inner is not None:
        check_reads(inner)
    if "reads" not in inspect.signature(base.terms).parameters:
        raise ConfigError(
            f"the base of an adversarial objective reads attacked images: {type(base).__name__}"
            ".terms takes no argument 'reads'; use ELBO, TotalCorrelation or a penalty over them"
        )
