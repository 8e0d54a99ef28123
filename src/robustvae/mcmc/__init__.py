"""Markov chains and mode searches on any batched log-density: pure kernels."""

from robustvae.mcmc.adaptation import (
    Adaptation,
    BatchWide,
    DualAveraging,
    FixedStep,
    PerChain,
)
from robustvae.mcmc.diagnostics import Diagnosis, diagnose, ess, r_hat
from robustvae.mcmc.hmc import Chain, Kernel, Step, hmc, hmc_step
from robustvae.mcmc.langevin import langevin
from robustvae.mcmc.leapfrog import LogDensity, State, Target, evaluate, leapfrog
from robustvae.mcmc.mass import DenseMass, DiagonalMass, MassMatrix, UnitMass, mass_matrix
from robustvae.mcmc.mode_search import Mode, implicit, mode_search
from robustvae.mcmc.newton import gauss_newton, lbfgs
from robustvae.mcmc.plateau import Plateau, hmc_to_plateau

__all__ = [
    "Adaptation",
    "BatchWide",
    "Chain",
    "DenseMass",
    "Diagnosis",
    "DiagonalMass",
    "DualAveraging",
    "FixedStep",
    "Kernel",
    "LogDensity",
    "MassMatrix",
    "Mode",
    "PerChain",
    "Plateau",
    "State",
    "Step",
    "Target",
    "UnitMass",
    "diagnose",
    "ess",
    "evaluate",
    "gauss_newton",
    "hmc",
    "hmc_step",
    "hmc_to_plateau",
    "implicit",
    "langevin",
    "lbfgs",
    "leapfrog",
    "mass_matrix",
    "mode_search",
    "r_hat",
]
