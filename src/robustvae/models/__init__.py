"""Variational autoencoders: made by `create`, wrapped from a user's own, loaded from disk."""

from robustvae.models.adapters import TrainingLoss, wrap
from robustvae.models.base import VAE
from robustvae.models.diagnosis import Diagnosis, check
from robustvae.models.dlgm import DLGM
from robustvae.models.hierarchy import HierarchicalVAE, LayeredGaussian, conditionals
from robustvae.models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    Distribution,
    Gaussian,
    Laplace,
    PointMass,
)
from robustvae.models.lipschitz import LipschitzVAE
from robustvae.models.nvae import NVAE
from robustvae.models.registry import create, names
from robustvae.models.seatbelt import SeatbeltVAE
from robustvae.models.vae import GaussianVAE

__all__ = [
    "Bernoulli",
    "check",
    "conditionals",
    "ContinuousBernoulli",
    "create",
    "Diagnosis",
    "Distribution",
    "DLGM",
    "Gaussian",
    "GaussianVAE",
    "HierarchicalVAE",
    "Laplace",
    "LayeredGaussian",
    "LipschitzVAE",
    "names",
    "NVAE",
    "PointMass",
    "SeatbeltVAE",
    "TrainingLoss",
    "VAE",
    "wrap",
]
