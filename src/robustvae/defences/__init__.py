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
from robustvae.defences.robust import RadiusEstimate, RobustPosterior, estimate_radius
from robustvae.defences.targets import RobustTarget, fisher, posterior
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
    "RadiusEstimate",
    "Redraw",
    "Refined",
    "Refinement",
    "RobustPosterior",
    "RobustTarget",
    "Threshold",
    "Victim",
    "estimate_radius",
    "fisher",
    "posterior",
]
