"""The bound formulas of the certificates, on latent quantities, in float64.

Letters: `reach` t is the latent distance that the output bound allows (r / a, or more), `shift` D
how far the posterior's mean can move, `spread` s the largest standard deviation of the latent
difference, `total` T the sum of its variances. All are (B,) or numbers and broadcast.
Every probability here is a lower bound on P(||z - z'|| <= t), so on the robustness probability;
every margin is rounded towards safety. Probabilities are differentiable.
"""

from robustvae.bounds.barrett import (
    barrett_global_margin,
    barrett_margin,
    barrett_probability,
    markov_failure,
    tail_failure,
)
from robustvae.bounds.envelope import envelope_reach
from robustvae.bounds.gaussian import (
    camuto_margin,
    first_order_margin,
    moved_failure,
    neyman_pearson_shift,
    spectral_margin,
)
from robustvae.bounds.generalized import generalized_probability
from robustvae.bounds.numbers import CDF_SLACK, SLACK, double, slack
from robustvae.bounds.search import crossing, largest
from robustvae.bounds.tails import (
    chi_quantile,
    isotropic_guess,
    isotropic_mass,
    noncentral_probability,
    trace_markov_probability,
)

__all__ = [
    "barrett_global_margin",
    "barrett_margin",
    "barrett_probability",
    "camuto_margin",
    "CDF_SLACK",
    "chi_quantile",
    "crossing",
    "double",
    "envelope_reach",
    "first_order_margin",
    "generalized_probability",
    "isotropic_guess",
    "isotropic_mass",
    "largest",
    "markov_failure",
    "moved_failure",
    "neyman_pearson_shift",
    "noncentral_probability",
    "SLACK",
    "slack",
    "spectral_margin",
    "tail_failure",
    "trace_markov_probability",
]
