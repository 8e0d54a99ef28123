"""The likelihood of a linear-Gaussian VAE is known; so is the proposal that makes it exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.evaluation import negative_log_likelihood, squared_error
from robustvae.models import Gaussian
from robustvae.models.likelihoods import ContinuousBernoulli

SHAPE, D, LATENT, NOISE = (1, 2, 3), 6, 2, 0.3


class Linear:
    """x = W z + b + noise: posterior N(P^-1 W^T (x - b) / s^2, P^-1), P = I + W^T W / s^2."""

    def __init__(self, spread: float = 1.0, orthogonal: bool = True) -> None:
        g = rv.generator(1)
        directions = torch.linalg.qr(torch.randn(D, LATENT, generator=g)).Q
        self.weight = directions * torch.tensor([0.5, 0.2])
        if not orthogonal:
            self.weight = self.weight + 0.2 * torch.randn(D, LATENT, generator=g)
        self.bias = torch.full((D,), 0.5)
        self.precision = torch.eye(LATENT) + self.weight.mT @ self.weight / NOISE**2
        self.spread = spread

    def encode(self, x: Tensor) -> Gaussian:
        pulled = (x.flatten(1) - self.bias) @ self.weight / NOISE**2
        mean = torch.linalg.solve(self.precision, pulled.mT).mT
        stddev = self.spread * self.precision.inverse().diagonal().sqrt()
        return Gaussian(mean, stddev.expand_as(mean))

    def decode(self, z: Tensor) -> Gaussian:
        mean = (z @ self.weight.mT + self.bias).view(-1, *SHAPE)
        return Gaussian(mean, torch.full_like(mean, NOISE))

    def exact(self, x: Tensor) -> Tensor:
        cov = self.weight @ self.weight.mT + NOISE**2 * torch.eye(D)
        marginal = torch.distributions.MultivariateNormal(self.bias, cov)
        return -marginal.log_prob(x.flatten(1))

    def vae(self) -> rv.VAE:
        return rv.wrap(encode=self.encode, decode=self.decode, latent=LATENT, image_shape=SHAPE)


@pytest.fixture
def x(generator):
    return torch.rand(5, *SHAPE, generator=generator)


def test_exact_posterior_gives_exact_likelihood_draw(x, generator):
    model = Linear()
    found = negative_log_likelihood(model.vae(), x, draws=1, generator=generator)
    assert_close(found, model.exact(x))


@pytest.mark.parametrize(("spread", "orthogonal"), [(1.3, True), (1.2, False)])
def test_another_proposal_agrees_within_standard_error(x, generator, spread, orthogonal):
    model = Linear(spread, orthogonal)
    exact = model.exact(x)
    assert (
        model.exact(x) - negative_log_likelihood(model.vae(), x, draws=1, generator=generator)
    ).abs().max() > 1e-3
    many = torch.stack(
        [negative_log_likelihood(model.vae(), x, draws=300, generator=generator) for _ in range(40)]
    )
    stderr = many.std(0) / math.sqrt(40)
    bias = many.var(0) / 2  # -E log of a mean is too high by half the variance of the mean
    assert ((many.mean(0) - exact - bias).abs() < 4.5 * stderr).all()
    assert (many.mean(0) > exact - 4 * stderr).all()


def test_chunks_change_nothing_but_order_draws(x):
    model = Linear(spread=1.2)

    def found(rows):
        return negative_log_likelihood(
            model.vae(), x, draws=4000, rows=rows, generator=rv.generator(3)
        )

    assert_close(found(20000), found(1000), atol=0.05, rtol=0)
    assert not torch.equal(found(20000), found(1000))


def test_likelihoods_thousands_nats_not_overflow(generator):
    model = Linear()
    far = torch.zeros(2, *SHAPE)
    model.bias = model.bias + 60
    found = negative_log_likelihood(model.vae(), far, draws=20, generator=generator)
    assert_close(found, model.exact(far))
    assert found.min() > 1000


@pytest.mark.parametrize("kind", ["vae", "dlgm", "seatbelt", "nvae", "lipschitz-vae"])
def test_every_model_one_below_negative_elbo(kind, generator):
    options = {"nvae": {}, "vae": {"hidden": [8], "latent": 2}, "lipschitz-vae": {"hidden": [8]}}
    given = options.get(kind, {"widths": [3, 2], "hidden": [8], "between": [8]})
    vae = rv.models.create(kind, image_shape=(1, 8, 8), **given)
    x = rv.data.load("digits", split="test").x[:4].double()
    found = negative_log_likelihood(vae, x, draws=60, generator=generator)
    elbo = rv.objectives.ELBO()
    with torch.no_grad():
        draws = torch.stack([elbo(vae, x, generator=generator) for _ in range(16)])
    assert (found < draws.mean(0) + 4 * draws.std(0) / math.sqrt(16)).all()
    assert found.shape == (4,)


def test_logits_score_another_likelihood(generator):
    options = {"architecture": "mlp", "hidden": [8], "latent": 2, "image_shape": (1, 8, 8)}
    plain = rv.models.create("vae", likelihood="bernoulli", **options)
    other = rv.models.create("vae", likelihood="continuous_bernoulli", **options)
    x = rv.data.load("digits", split="test").x[:3].double()

    def found(vae, read=None):
        return negative_log_likelihood(vae, x, draws=9, read=read, generator=rv.generator(2))

    read = found(plain, lambda p: ContinuousBernoulli(p.logits))
    assert_close(read, found(other))
    assert (found(plain) - read > 1).all()


def test_squared_error_of_a_known_reconstruction(x, generator):
    half = rv.wrap(
        encode=lambda x: Gaussian(x.flatten(1)[:, :1], torch.ones(len(x), 1)),
        decode=lambda z: Gaussian(
            z.view(-1, 1, 1, 1).expand(-1, *SHAPE), torch.ones(len(z), *SHAPE)
        ),
        latent=1,
        image_shape=SHAPE,
    )
    by_hand = (255 * (x - x[:, :, :1, :1])).square().flatten(1).mean(1)
    assert_close(squared_error(half, x, generator=generator), by_hand)
    many = x[:1].expand(4000, -1, -1, -1)
    sampled = squared_error(half, many, sampled=True, generator=generator)
    stderr = sampled.std() / math.sqrt(len(many))
    assert abs(sampled.mean() - by_hand[0] - 255**2) < 4 * stderr


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"rows": 0}, {"draws": 2.5}])
def test_bad_likelihood_arguments_are_errors(x, generator, wrong):
    with pytest.raises(errors.RobustVAEError):
        negative_log_likelihood(Linear().vae(), x, generator=generator, **wrong)
    with pytest.raises(errors.ShapeError):
        negative_log_likelihood(Linear().vae(), x[:, :, :1], generator=generator)
    with pytest.raises(errors.RangeError):
        negative_log_likelihood(Linear().vae(), x + 1, generator=generator)


def test_likelihood_in_halves_when_memory_ends(x, generator, monkeypatch):
    """The draws are the same; only fewer codes are decoded at once."""
    vae, sizes = rv.models.create("vae", architecture="mlp", latent=2, image_shape=x.shape[1:]), []
    vae = vae.double().eval()
    state = generator.get_state()
    wanted = negative_log_likelihood(vae, x, draws=20, generator=generator)
    decode = vae.decode

    def small(z):
        sizes.append(len(z))
        if len(z) > 30:
            raise MemoryError
        return decode(z)

    monkeypatch.setattr(vae, "decode", small)
    generator.set_state(state)
    result = negative_log_likelihood(vae, x, draws=20, generator=generator)
    assert max(sizes) > 30 >= min(sizes)
    assert_close(result, wanted)
