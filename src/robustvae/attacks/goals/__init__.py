"""What an attacker wants: one file a goal; bound to a victim and inputs, it is a score to raise."""

from robustvae.attacks.goals.anomaly_score import AnomalyScore
from robustvae.attacks.goals.base import BoundGoal, Goal, Readings, bound, reported
from robustvae.attacks.goals.bit_rate import BitRate
from robustvae.attacks.goals.classifier_flip import ClassifierFlip
from robustvae.attacks.goals.divergence import DIVERGENCES
from robustvae.attacks.goals.encoder_target import EncoderTarget
from robustvae.attacks.goals.latent_shift import LatentShift
from robustvae.attacks.goals.latent_target import LatentTarget
from robustvae.attacks.goals.layer_shift import LayerShift
from robustvae.attacks.goals.maximum_damage import MaximumDamage
from robustvae.attacks.goals.metric_drop import MetricDrop
from robustvae.attacks.goals.output_target import OutputTarget
from robustvae.attacks.goals.overflow import Overflow, nearest_overflow
from robustvae.attacks.goals.weighted_sum import WeightedSum

__all__ = [
    "MetricDrop",
    "EncoderTarget",
    "BitRate",
    "AnomalyScore",
    "DIVERGENCES",
    "BoundGoal",
    "ClassifierFlip",
    "Goal",
    "LatentShift",
    "LatentTarget",
    "LayerShift",
    "MaximumDamage",
    "OutputTarget",
    "Overflow",
    "nearest_overflow",
    "Readings",
    "WeightedSum",
    "bound",
    "reported",
]
