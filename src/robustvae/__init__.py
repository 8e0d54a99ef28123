"""Robust variational autoencoders: train, attack, defend, certify, audit.

Every public name is imported when it is first used, so `import robustvae` alone costs next to
nothing and does not import torch.
"""

from typing import TYPE_CHECKING

from robustvae._lazy import attach

if TYPE_CHECKING:  # the same names for type checkers and editors, which read no table
    from robustvae import data, errors, models, objectives, report
    from robustvae.attacks import (
        AnomalyScore,
        Attack,
        AttackResult,
        AttackSuite,
        BitRate,
        ClassifierFlip,
        EncoderTarget,
        LatentShift,
        LatentTarget,
        MaximumDamage,
        MetricDrop,
        OutputTarget,
    )
    from robustvae.audit import audit, verify
    from robustvae.certificates import (
        Certificate,
        Question,
        certified_curve,
        certify,
        certify_score,
    )
    from robustvae.defenses import (
        HMC,
        InputNoise,
        PosteriorMean,
        PosteriorMode,
        PosteriorSample,
        RobustPosterior,
        Victim,
    )
    from robustvae.evaluation import evaluate
    from robustvae.geometry import pullback
    from robustvae.models import VAE, check, wrap
    from robustvae.perturb import LBFGS, Ball, OneShot, ProjectedAscent, Universal
    from robustvae.records import Estimate, Record
    from robustvae.report.compare import compare
    from robustvae.robustness import estimate_margin, robustness_probability
    from robustvae.seeding import draw, generator
    from robustvae.training import fit
    from robustvae.zoo import load

__version__ = "0.2.0.dev0"

# Where each public name lives; a family itself has the empty text.
_HOMES = {
    "AnomalyScore": "attacks",
    "Attack": "attacks",
    "AttackResult": "attacks",
    "AttackSuite": "attacks",
    "audit": "audit",
    "Ball": "perturb",
    "BitRate": "attacks",
    "Certificate": "certificates",
    "certified_curve": "certificates",
    "certify": "certificates",
    "certify_score": "certificates",
    "check": "models",
    "ClassifierFlip": "attacks",
    "compare": "report.compare",
    "data": "",
    "draw": "seeding",
    "EncoderTarget": "attacks",
    "errors": "",
    "Estimate": "records",
    "estimate_margin": "robustness",
    "evaluate": "evaluation",
    "fit": "training",
    "generator": "seeding",
    "HMC": "defenses",
    "InputNoise": "defenses",
    "LatentShift": "attacks",
    "LatentTarget": "attacks",
    "LBFGS": "perturb",
    "load": "zoo",
    "MaximumDamage": "attacks",
    "MetricDrop": "attacks",
    "models": "",
    "objectives": "",
    "OneShot": "perturb",
    "OutputTarget": "attacks",
    "PosteriorMean": "defenses",
    "PosteriorMode": "defenses",
    "PosteriorSample": "defenses",
    "ProjectedAscent": "perturb",
    "pullback": "geometry",
    "Question": "certificates",
    "Record": "records",
    "report": "",
    "robustness_probability": "robustness",
    "RobustPosterior": "defenses",
    "Universal": "perturb",
    "VAE": "models",
    "verify": "audit",
    "Victim": "defenses",
    "wrap": "models",
}

__all__ = [
    "AnomalyScore",
    "Attack",
    "AttackResult",
    "AttackSuite",
    "audit",
    "Ball",
    "BitRate",
    "Certificate",
    "certified_curve",
    "certify",
    "certify_score",
    "check",
    "ClassifierFlip",
    "compare",
    "data",
    "draw",
    "EncoderTarget",
    "errors",
    "Estimate",
    "estimate_margin",
    "evaluate",
    "fit",
    "generator",
    "HMC",
    "InputNoise",
    "LatentShift",
    "LatentTarget",
    "LBFGS",
    "load",
    "MaximumDamage",
    "MetricDrop",
    "models",
    "objectives",
    "OneShot",
    "OutputTarget",
    "PosteriorMean",
    "PosteriorMode",
    "PosteriorSample",
    "ProjectedAscent",
    "pullback",
    "Question",
    "Record",
    "report",
    "robustness_probability",
    "RobustPosterior",
    "Universal",
    "VAE",
    "verify",
    "Victim",
    "wrap",
]

attach(__name__, _HOMES)
