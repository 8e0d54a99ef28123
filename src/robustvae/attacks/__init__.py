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
from robustvae.attacks.sweep import PenaltySweep, SweepResult, auddc, penalties, select_penalty

__all__ = [
    "Attack",
    "AttackResult",
    "ClassifierFlip",
    "Goal",
    "LatentShift",
    "LatentTarget",
    "MaximumDamage",
    "OutputTarget",
    "PenaltySweep",
    "Search",
    "SweepResult",
    "WeightedSum",
    "auddc",
    "penalties",
    "select_penalty",
]
