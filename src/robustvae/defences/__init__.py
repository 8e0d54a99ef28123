"""Defences: ways to read a latent off an image."""

from robustvae.defences.posterior import HMC, PosteriorMean, PosteriorMode, PosteriorSample
from robustvae.defences.robust import RobustPosterior
from robustvae.defences.targets import RobustTarget, posterior
from robustvae.defences.victim import Defence, Victim

__all__ = [
    "HMC",
    "Defence",
    "PosteriorMean",
    "PosteriorMode",
    "PosteriorSample",
    "RobustPosterior",
    "RobustTarget",
    "Victim",
    "posterior",
]
