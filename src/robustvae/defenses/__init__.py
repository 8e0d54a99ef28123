"""Defenses: ways to read a latent off an image."""

from robustvae.defenses.defense import (
    Cost,
    Defense,
    cost,
    is_posterior_mean,
    is_random,
    reads_encoder_mean,
    seeks_mode,
)
from robustvae.defenses.noise import InputNoise
from robustvae.defenses.posterior import (
    HMC,
    Langevin,
    PosteriorMean,
    PosteriorMode,
    PosteriorSample,
)
from robustvae.defenses.refine import (
    JPEG,
    BitDepth,
    Median,
    Redraw,
    Refined,
    Refinement,
    Threshold,
)
from robustvae.defenses.robust import RadiusEstimate, RobustPosterior, estimate_radius
from robustvae.defenses.targets import RobustTarget, fisher, posterior
from robustvae.defenses.victim import Victim

__all__ = [
    "BitDepth",
    "Cost",
    "Defense",
    "HMC",
    "InputNoise",
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
    "cost",
    "fisher",
    "is_posterior_mean",
    "is_random",
    "posterior",
    "reads_encoder_mean",
    "seeks_mode",
]
