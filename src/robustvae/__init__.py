"""Robust variational autoencoders: train, attack, defend, certify, audit."""

from robustvae import data, errors, models, objectives, report
from robustvae.attacks import (
    Attack,
    AttackResult,
    AttackSuite,
    ClassifierFlip,
    LatentShift,
    LatentTarget,
    MaximumDamage,
    OutputTarget,
)
from robustvae.auditing import audit
from robustvae.certificates import Certificate, certify
from robustvae.defenses import (
    HMC,
    PosteriorMean,
    PosteriorMode,
    PosteriorSample,
    RobustPosterior,
    Victim,
)
from robustvae.evaluation import evaluate
from robustvae.geometry import pullback
from robustvae.models import VAE, wrap
from robustvae.perturb import LBFGS, Ball, OneShot, ProjectedAscent
from robustvae.records import Estimate, Record
from robustvae.robustness import estimate_margin, robustness_probability
from robustvae.seeding import draw, generator
from robustvae.training import fit
from robustvae.zoo import load

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "AttackResult",
    "AttackSuite",
    "audit",
    "Ball",
    "Certificate",
    "certify",
    "ClassifierFlip",
    "data",
    "draw",
    "errors",
    "Estimate",
    "estimate_margin",
    "evaluate",
    "fit",
    "generator",
    "HMC",
    "LatentShift",
    "LatentTarget",
    "LBFGS",
    "load",
    "MaximumDamage",
    "models",
    "objectives",
    "OneShot",
    "OutputTarget",
    "PosteriorMean",
    "PosteriorMode",
    "PosteriorSample",
    "ProjectedAscent",
    "pullback",
    "Record",
    "report",
    "robustness_probability",
    "RobustPosterior",
    "VAE",
    "Victim",
    "wrap",
]
