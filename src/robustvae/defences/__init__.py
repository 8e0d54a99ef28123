"""Defences: ways to read a latent off an image."""

from robustvae.defences.defence import Defence
from robustvae.defences.posterior import (
    HMC,
    Langevin,
    PosteriorMean,
    PosteriorMode,
    PosteriorSample,
)
from robustvae.defences.refine import (
    JPEG,
    BitDepth,
    Median,
    Redraw,
    Refined,
    Refinement,
    Threshold,
)
from robustvae.defences.robust import RobustPosterior
from robustvae.defences.targets import RobustTarget, posterior
from robustvae.defences.victim import Victim

__all__ = [
    "BitDepth",
    "Defence",
    "HMC",
    "JPEG",
    "Langevin",
    "Median",
    "PosteriorMean",
    "PosteriorMode",
    "PosteriorSample",
    "Redraw",
    "Refined",
    "Refinement",
    "RobustPosterior",
    "RobustTarget",
    "Threshold",
    "Victim",
    "posterior",
]
