"""Attacks: goals, the attack itself, and what comes back."""

from robustvae.attacks.attack import Attack, AttackResult, Search
from robustvae.attacks.goals import (
    ClassifierFlip,
    Goal,
    LatentShift,
    LatentTarget,
    MaximumDamage,
    OutputTarget,
    WeightedSum,
)

__all__ = [
    "Attack",
    "AttackResult",
    "ClassifierFlip",
    "Goal",
    "LatentShift",
    "LatentTarget",
    "MaximumDamage",
    "OutputTarget",
    "Search",
    "WeightedSum",
]
