"""What training minimizes, as values: an objective gives every image its loss."""

from robustvae.objectives.adversarial import Adversarial
from robustvae.objectives.base import Objective
from robustvae.objectives.elbo import ELBO
from robustvae.objectives.mixup import Mixup
from robustvae.objectives.registry import create, names
from robustvae.objectives.self_consistency import SelfConsistency, SelfSupervision
from robustvae.objectives.smooth_encoder import SmoothEncoder
from robustvae.objectives.spectral import SpectralRegularization
from robustvae.objectives.support_set import SupportSet
from robustvae.objectives.total_correlation import TotalCorrelation

__all__ = [
    "Adversarial",
    "create",
    "ELBO",
    "Mixup",
    "names",
    "Objective",
    "SelfConsistency",
    "SelfSupervision",
    "SmoothEncoder",
    "SpectralRegularization",
    "SupportSet",
    "TotalCorrelation",
]
