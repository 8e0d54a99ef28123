"""Several goals at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked_fields
from robustvae.attacks.goals.base import Goal
from robustvae.defenses import Victim
from robustvae.errors import RangeError, check_number
from robustvae.perturb import Score
from robustvae.registry import build, register
from robustvae.seeding import by_row


@checked_fields
@register("goal", "weighted-sum")
@final
@dataclass(frozen=True)
class WeightedSum:
    """Several goals at once: the weighted sum of their scores.

    Args:
        goals: At least one goal.
        weights: One finite number for each.

    Raises:
        RangeError: No goal, or another number of weights.

    Examples:
        >>> from robustvae.attacks import LatentShift, MaximumDamage, WeightedSum
        >>> goal = WeightedSum((LatentShift(), MaximumDamage()), (0.1, 1.0))
    """

    goals: tuple[Goal, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        """Validate the fields."""
        goals = tuple(build("goal", goal) for goal in self.goals)
        object.__setattr__(self, "goals", goals)
        if not self.goals or len(self.goals) != len(self.weights):
            raise RangeError(
                f"a weighted sum needs one weight for each of its goals, at least one: "
                f"got {len(self.goals)} goals and {len(self.weights)} weights"
            )
        for weight in self.weights:
            check_number(weight, "each weight")

    def bind(self, victim: Victim, x: Tensor, *, generator: torch.Generator) -> Score:
        """The weighted sum; see `Goal.bind`."""
        streams = by_row(generator, "sum", x)
        scores = [goal.bind(victim, x, generator=streams) for goal in self.goals]

        def score(y: Tensor, rows: Tensor) -> Tensor:
            parts = [w * s(y, rows) for w, s in zip(self.weights, scores, strict=True)]
            return torch.stack(parts).sum(0)

        return score
