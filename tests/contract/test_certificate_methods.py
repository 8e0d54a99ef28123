"""Every certificate method of the library stays below an exact margin, or abstains by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ncx2

import robustvae as rv
from robustvae import registry
from robustvae.models import create
from robustvae.testing import members_of

R, M, SPREAD, NOISE = 1.2, 0.6, 0.1, 0.1

CASES = {
    "barrett": ("barrett", "paired"),
    "envelope": ("envelope", "centered"),
    "first_order": ("first_order", "centered"),
    "generalized": ("generalized", "centered"),
    "neyman_pearson": ("neyman_pearson", "paired"),
    "noncentral": ("noncentral", "paired"),
    "sampled_reach": ("sampled_reach:draws=400,steps=5", "paired"),
    "smoothing": ("smoothing:draws=2000", "paired"),
    "tangent": ("tangent", "centered"),
    "trace_markov": ("trace_markov", "centered"),
}


def linear():
    """Maps of orthonormal rows: latents move by 1.5 times the change, outputs by twice that."""
    settings = {"encoder_lipschitz": 1.5, "decoder_lipschitz": 2.0, "stddev": SPREAD}
    vae = create(
        "lipschitz-vae",
        image_shape=(1, 4, 4),
        latent=4,
        hidden=[],
        likelihood="gaussian",
        **settings,
    )
    return vae.double()


def exact_margin(variance):
    """The largest change at which a Gaussian of that variance keeps its mass in the ball."""
    sizes = np.linspace(1e-6, 1, 20_001)
    inside = ncx2.cdf((R / 2) ** 2 / variance, 4, (1.5 * sizes) ** 2 / variance)
    return sizes[(inside > M).nonzero()[0][-1] + 1]  # where it no longer does


def test_every_method_has_evidence():
    assert set(CASES) == members_of("robustvae", "certificate-method")


@pytest.mark.parametrize("name", sorted(CASES))
def test_method_is_below_the_exact_margin(name, generator):
    spec, displacement = CASES[name]
    method = registry.build("certificate-method", spec)
    assert method.kind in ("deterministic", "probabilistic", "first_order")
    assert set(method.norms) <= {"l2", "linf"} and "l2" in method.norms
    draws = 2 if displacement == "paired" else 1
    variance = SPREAD**2
    vae, x = linear(), torch.rand(2, 1, 4, 4, generator=generator)
    victim = rv.Victim(vae)
    if name == "smoothing":
        variance += (1.5 * NOISE) ** 2
        victim = rv.Victim(vae, rv.InputNoise(NOISE))
    certificate = rv.certify(
        victim, x, R, M, displacement, methods=[spec], generator=rv.generator(0)
    )
    assert certificate.kind == method.kind
    if name in ("envelope", "tangent"):  # of a decoder that ends in no sigmoid they say nothing
        assert certificate.status == ("abstain",) * 2
        return
    if name != "barrett":  # the baseline proves nothing here
        assert (certificate.radius > 0).all(), certificate.assumptions
    if method.kind != "first_order":
        assert (certificate.radius <= exact_margin(draws * variance)).all()


@pytest.mark.parametrize("name", sorted(CASES))
def test_method_abstains_outside_its_scope(name, generator):
    """A model behind functions without a Gaussian posterior or noise on its input."""
    vae = rv.wrap(
        encode=lambda x: torch.distributions.Laplace(x.flatten(1)[:, :2], 0.1),
        decode=lambda z: torch.distributions.Normal(z.repeat(1, 8).view(-1, 1, 4, 4), 1.0),
        latent=2,
        image_shape=(1, 4, 4),
    )
    x = torch.rand(1, 1, 4, 4, generator=generator)
    certificate = rv.certify(
        vae, x, R, M, "full", methods=[CASES[name][0]], generator=rv.generator(0)
    )
    assert certificate.status == ("abstain",) and "not covered" in " ".join(certificate.assumptions)
