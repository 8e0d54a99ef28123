"""Robust variational autoencoders: train, attack, defend, certify, audit."""

from robustvae import errors, models
from robustvae.models import VAE, wrap
from robustvae.records import Estimate, Record
from robustvae.seeding import draw, generator

__version__ = "0.1.0"

__all__ = ["Estimate", "Record", "VAE", "draw", "errors", "generator", "models", "wrap"]
