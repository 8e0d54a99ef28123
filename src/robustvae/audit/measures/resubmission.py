"""What an attacker gains who sends the same image again, against a defense that draws anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from robustvae.audit.context import Context, distance
from robustvae.records import Column
from robustvae.registry import register

SUBMISSIONS = 10


@register("measure", "resubmission")
@final
@dataclass(frozen=True)
class Resubmission:
    """Damage in the worst of ten submissions and in the middle one, of victims that draw.

    Each submission has its own draws, the same for the clean and the attacked input, so that only
    the input makes the difference. A victim that draws nothing answers the same each time: empty.

    References:
        Kassis et al., 2025 (DiffBreak): the worst of N, and the majority of votes.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            id="damage_worst_of_10",
            label="damage in the worst of ten submissions",
            unit="pixel units, l2",
            better="lower",
        ),
        Column(
            id="damage_majority",
            label="damage that at least half of ten submissions suffer",
            unit="pixel units, l2",
            better="lower",
        ),
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        if not context.random:
            return {column.id: [None] * len(context.x) for column in self.columns}
        damage = torch.stack([self._damage(context, f"submission {k}") for k in range(SUBMISSIONS)])
        # half of the submissions suffer at least the upper of the two middle values
        middle = damage.sort(0).values[SUBMISSIONS // 2]
        return {"damage_worst_of_10": damage.amax(0), "damage_majority": middle}

    def _damage(self, context: Context, purpose: str) -> torch.Tensor:
        clean = context.once(
            (purpose, context.name), lambda: context.read(context.victim, context.x, purpose)
        )
        return distance(context.read(context.victim, context.x_adv, purpose), clean)
