"""A goal: make the reconstruction darker."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae import Victim
from robustvae.registry import register


@register("goal", "darkening")
@final
@dataclass(frozen=True)
class Darkening:
    """Lower the mean pixel of the reconstruction."""

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator):
        """The score of candidates: minus the mean pixel; see `robustvae.attacks.Goal`."""

        def score(y: Tensor, rows: Tensor) -> Tensor:
            return -victim.reconstruct(y, generator=generator).flatten(1).mean(1)

        return score
