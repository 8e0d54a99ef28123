"""Input noise in training: against its definition, written out, and against a closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import robustvae as rv
from robustvae import errors, metrics
from robustvae.models import Bernoulli, Gaussian
from robustvae.objectives import ELBO, Mixup, SmoothEncoder, TotalCorrelation
from robustvae.objectives.noise import add_noise

MODELS = {
    "vae": {"architecture": "conv8", "latent": 2},
    "dlgm": {"widths": [4, 2], "image_shape": (1, 8, 8), "hidden": [16]},
    "seatbelt": {"widths": [4, 2], "image_shape": (1, 8, 8), "hidden": [16]},
    "nvae": {"image_shape": (1, 8, 8), "channels": 4},
}


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=generator)


def test_noise_matches_its_definition(x: Tensor) -> None:
    vae = rv.models.create("vae", **MODELS["vae"])
    got = ELBO(beta=2.0, input_noise=0.3).terms(vae, x, generator=rv.generator(5))
    g = rv.generator(5)
    q = vae.encode(x + 0.3 * torch.randn(x.shape, generator=g))
    z = q.mean + q.stddev * torch.randn(q.mean.shape, generator=g)
    distortion = -vae.decode(z).log_prob(x).flatten(1).sum(1)
    kl = metrics.kl(q.mean, q.stddev, torch.zeros_like(z), torch.ones_like(z))
    torch.testing.assert_close(got["distortion"], distortion)
    torch.testing.assert_close(got["kl"], kl)
    torch.testing.assert_close(got["loss"], distortion + 2 * kl)


def test_noise_costs_its_closed_form(generator: torch.Generator) -> None:
    """mu(x) = x: noise adds s^2 / 2 a pixel to the KL and s^2 / 2t^2 to the distortion, exactly."""
    spread, s = 0.5, 0.4
    vae = rv.wrap(
        encode=lambda x: Gaussian(x.flatten(1), torch.full_like(x.flatten(1), 0.7)),
        decode=lambda z: Gaussian(z.view(-1, 1, 2, 3), torch.full((1,), spread)),
        latent=6,
        image_shape=(1, 2, 3),
    )
    x = torch.rand(1, 1, 2, 3, generator=generator).expand(20_000, -1, -1, -1)
    quiet = ELBO().terms(vae, x, generator=generator)
    noisy = ELBO(input_noise=s).terms(vae, x, generator=generator)
    for name, expected in (("kl", 6 * s**2 / 2), ("distortion", 6 * s**2 / (2 * spread**2))):
        difference = noisy[name] - quiet[name]
        stderr = float(difference.std()) / math.sqrt(len(x))
        assert abs(float(difference.mean()) - expected) < 4 * stderr


def test_zero_noise_spends_nothing(x: Tensor) -> None:
    vae = rv.models.create("vae", **MODELS["vae"])
    for noise in (0.0, (0.0, 0.0), [0, 0]):
        got = ELBO(input_noise=noise)(vae, x, generator=rv.generator(1))
        torch.testing.assert_close(got, ELBO()(vae, x, generator=rv.generator(1)), rtol=0, atol=0)


def test_noise_range_draws_per_image(generator: torch.Generator) -> None:
    x = torch.zeros(400, 1, 20, 20)
    spreads = add_noise(x, (0.1, 0.3), generator=generator).flatten(1).std(1)
    # 400 numbers know their own spread to 1/sqrt(800) of it: 5 standard errors
    assert 0.1 * 0.82 < float(spreads.min()) < 0.12
    assert 0.28 < float(spreads.max()) < 0.3 * 1.18
    assert abs(float(spreads.mean()) - 0.2) < 4 * float(spreads.std()) / 20


def test_noise_warms_up_linearly() -> None:
    objective = ELBO(beta=2.0, warmup=10, input_noise=(0.1, 0.4), noise_warmup=20)
    halfway = objective.at(10)
    assert halfway == ELBO(beta=2.0, input_noise=(0.05, 0.2))
    assert objective.at(20) == objective.at(999) == ELBO(beta=2.0, input_noise=(0.1, 0.4))
    assert TotalCorrelation(input_noise=0.4, noise_warmup=4).at(1).input_noise == 0.1


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_under_noise(name: str, x: Tensor, generator: torch.Generator) -> None:
    vae = rv.models.create(name, **MODELS[name])
    loss = ELBO(input_noise=0.25, free_bits=0.1)(vae, x, generator=generator)
    loss.mean().backward()
    assert loss.shape == (4,)
    first = next(p for p in vae.parameters() if p.requires_grad)
    assert first.grad is not None and float(first.grad.norm()) > 0


@pytest.mark.parametrize(
    "objective",
    [
        Mixup(base=ELBO(input_noise=0.3)),
        SmoothEncoder(base=ELBO(input_noise=0.3), steps=1),
        TotalCorrelation(input_noise=0.3),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_noise_reaches_every_base(objective: rv.objectives.Objective, x: Tensor) -> None:
    seen: list[float] = []

    def encode(y: Tensor) -> Gaussian:
        seen.append(float((y - x).detach().flatten(1).std()))
        mean = y.flatten(1).mean(1, keepdim=True)
        return Gaussian(mean, torch.ones_like(mean))

    vae = rv.wrap(
        encode=encode,
        decode=lambda z: Bernoulli(z[..., None, None].expand(-1, 1, 8, 8)),
        latent=1,
        image_shape=(1, 8, 8),
    )
    objective(vae, x, generator=rv.generator(0))
    # 256 numbers know their own spread to 4.4 %
    assert seen[0] == pytest.approx(0.3, rel=0.2)


@pytest.mark.parametrize(
    ("noise", "error"),
    [
        (-0.1, errors.RangeError),
        ((0.3, 0.1), errors.RangeError),
        ((0.1, -0.3), errors.RangeError),
        ((0.1, 0.2, 0.3), errors.DtypeError),
        ("0.1", errors.DtypeError),
        (math.nan, errors.NonFiniteError),
    ],
)
def test_impossible_noise_is_refused(noise: object, error: type[Exception]) -> None:
    for objective in (ELBO, TotalCorrelation):
        with pytest.raises(error, match="input_noise"):
            objective(input_noise=noise)
