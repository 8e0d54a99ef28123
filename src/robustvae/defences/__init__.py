"""Defences: ways to read a latent off an image."""

from robustvae.defences.posterior import PosteriorMean, PosteriorSample
from robustvae.defences.victim import Defence, Victim

__all__ = ["Defence", "PosteriorMean", "PosteriorSample", "Victim"]
