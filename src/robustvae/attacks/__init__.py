"""Attacks: goals, searches over balls, the suite, and the evidence that they were real ones."""

from robustvae.attacks.adaptive import Checkpointed, Implicit, StraightThrough, Truncated
from robustvae.attacks.attack import Attack, AttackResult, Search
from robustvae.attacks.code_space import CodeSpace
from robustvae.attacks.directed import DirectedAscent
from robustvae.attacks.evidence import evidence_checks
from robustvae.attacks.goals import (
    AnomalyScore,
    BitRate,
    ClassifierFlip,
    EncoderTarget,
    Goal,
    LatentShift,
    LatentTarget,
    LayerShift,
    MaximumDamage,
    MetricDrop,
    OutputTarget,
    WeightedSum,
)
from robustvae.attacks.scores import (
    adversarial_accuracy,
    distances,
    likelihood_degradation,
    noise_robustness,
    success_curve,
)
from robustvae.attacks.stored import Rescored, rescore, store
from robustvae.attacks.suite import AttackSuite, SuiteResult, SuiteRow
from robustvae.attacks.survival import resubmissions, survival
from robustvae.attacks.sweep import PenaltySweep, SweepResult, auddc, penalties, select_penalty
from robustvae.attacks.through import Through

__all__ = [
    "resubmissions",
    "survival",
    "Through",
    "CodeSpace",
    "DirectedAscent",
    "AnomalyScore",
    "BitRate",
    "EncoderTarget",
    "MetricDrop",
    "Attack",
    "AttackResult",
    "AttackSuite",
    "Checkpointed",
    "ClassifierFlip",
    "Goal",
    "Implicit",
    "LatentShift",
    "LatentTarget",
    "LayerShift",
    "MaximumDamage",
    "OutputTarget",
    "PenaltySweep",
    "Rescored",
    "Search",
    "StraightThrough",
    "SuiteResult",
    "SuiteRow",
    "SweepResult",
    "Truncated",
    "WeightedSum",
    "adversarial_accuracy",
    "auddc",
    "distances",
    "evidence_checks",
    "likelihood_degradation",
    "noise_robustness",
    "penalties",
    "rescore",
    "select_penalty",
    "store",
    "success_curve",
]
