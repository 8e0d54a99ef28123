import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustvae import bounds, errors
from robustvae.certificates import certify, global_margin, isotropic_margin
from robustvae.certificates.globally import design
from robustvae.models import create


@pytest.mark.parametrize("displacement", ["centered", "paired"])
@pytest.mark.parametrize("likelihood", ["continuous_bernoulli", "gaussian"])
def test_designed_model_reaches_wanted_margin(displacement, likelihood, generator):
    """Every input of an untrained model with these options has at least the margin wanted."""
    found = design(
        0.3, r=2.0, m=0.7, displacement=displacement, latent=4, stddev=0.1, likelihood=likelihood
    )
    vae = create(
        "lipschitz-vae",
        image_shape=(1, 4, 4),
        hidden=[16],
        latent=4,
        stddev=found.stddev,
        likelihood=likelihood,
        encoder_lipschitz=found.encoder_lipschitz,
        decoder_lipschitz=found.decoder_lipschitz,
    ).float()
    x = torch.rand(10, 1, 4, 4, generator=generator).float()
    certificate = certify(vae, x, 2.0, 0.7, displacement, generator=generator)
    assert (certificate.radius >= 0.3).all()
    assert 0.3 <= found.margin < 0.301
    assert global_margin(vae, r=2.0, m=0.7, displacement=displacement) >= found.margin


def test_isotropic_margins_of_one_example():
    """K = 10, sigma = 0.1, r = 8, m = 1/2, d = 10; a = 10, and a = 10/4 by the slope."""
    wanted = {("paired", 10.0): 0.068, ("centered", 10.0): 0.074}
    wanted |= {("paired", 2.5): 0.317, ("centered", 2.5): 0.319}
    for (displacement, a), value in wanted.items():
        got = isotropic_margin(0.1, r=8.0, m=0.5, a=a, b=10.0, latent=10, displacement=displacement)
        assert got == pytest.approx(value, abs=6e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.01, 0.5),
    st.floats(0.5, 10),
    st.floats(0.05, 0.95),
    st.floats(0.2, 10),
    st.integers(2, 40),
    st.sampled_from(["centered", "paired"]),
)
def test_never_below_barretts_global_margin(stddev, r, m, k, latent, displacement):
    arguments = {"r": r, "m": m, "a": k, "b": k, "latent": latent, "displacement": displacement}
    theirs = bounds.barrett_global_margin(stddev, **arguments)
    assert isotropic_margin(stddev, **arguments) >= theirs * (1 - 1e-6) - 1e-9


def test_what_cannot_be_had_is_refused():
    with pytest.raises(errors.RangeError, match="no constants"):
        design(1e7, r=1.0)
    with pytest.raises(errors.UnsupportedError):
        vae = create("lipschitz-vae", image_shape=(1, 4, 4), hidden=[8], latent=3, stddev=None)
        global_margin(vae, r=1.0, m=0.5, displacement="centered")
