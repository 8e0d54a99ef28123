"""Markov chains and mode searches on any batched log-density: pure kernels."""

from robustvae.mcmc.diagnostics import Diagnosis, diagnose, ess, r_hat
from robustvae.mcmc.hmc import Chain, Step, hmc, hmc_step
from robustvae.mcmc.langevin import langevin
from robustvae.mcmc.leapfrog import LogDensity, State, Target, evaluate, leapfrog
from robustvae.mcmc.mode_search import Mode, implicit, mode_search
from robustvae.mcmc.newton import gauss_newton, lbfgs
from robustvae.mcmc.plateau import Settled, hmc_to_plateau

__all__ = [
    "Chain",
    "Diagnosis",
    "LogDensity",
    "Mode",
    "Settled",
    "State",
    "Step",
    "Target",
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
    "mode_search",
    "r_hat",
]
