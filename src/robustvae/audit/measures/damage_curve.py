"""How the damage grows with the size of the change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from robustvae.audit.context import Context, distance
from robustvae.records import Column
from robustvae.registry import register

# Where the straight way from the clean to the attacked input is looked at. Three places show
# whether damage sets in at once or late; each costs one more output.
SHARES = {"damage_at_25": 0.25, "damage_at_50": 0.5, "damage_at_75": 0.75}


@register("measure", "damage-curve")
@final
@dataclass(frozen=True)
class DamageCurve:
    """Damage at a quarter, half and three quarters of the change, for each ball's first attack.

    The shortened change is one that an attacker may use, so the damage at that size is at least
    this; an attack made for that size may do more.
    """

    columns: ClassVar[tuple[Column, ...]] = tuple(
        Column(
            id=key,
            label=f"damage at {share:.0%} of the attack's change",
            unit="pixel units, l2",
            better="lower",
            reduction="none",
        )
        for key, share in SHARES.items()
    )

    def __call__(self, context: Context) -> Mapping[str, Any]:
        """Measure one attack."""
        attacked = context.attacked
        assert attacked is not None, "a measure of attacks"
        ball = attacked.plan.ball
        leader = next(attack for attack in context.plan.attacks if attack.ball == ball)
        if attacked.role != "plan" or attacked.id != leader.id:
            return {key: [None] * len(context.x) for key in SHARES}
        step = context.x_adv - context.x
        return {
            key: distance(
                context.read(context.victim, context.x + share * step, "output"), context.output
            )
            for key, share in SHARES.items()
        }
