"""What every objective offers to training."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from robustvae.models import VAE
from robustvae.registry import family_base


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
