"""Markov chains and mode searches on any batched log-density: pure kernels."""

from robustvae.mcmc.diagnostics import ess, r_hat
from robustvae.mcmc.hmc import Chain, Step, hmc, hmc_step
from robustvae.mcmc.langevin import langevin
from robustvae.mcmc.leapfrog import LogDensity, State, evaluate, leapfrog
from robustvae.mcmc.mode_search import Mode, implicit, mode_search

__all__ = [
    "Chain",
    "LogDensity",
    "Mode",
    "State",
    "Step",
    "ess",
    "evaluate",
    "hmc",
    "hmc_step",
    "implicit",
    "langevin",
    "leapfrog",
    "mode_search",
    "r_hat",
]
