"""The ELBO against closed forms: a linear-Gaussian VAE, where everything is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import robustvae as rv
from robustvae import errors
from robustvae.models import Bernoulli, Gaussian
from robustvae.objectives import ELBO, Objective

PIXELS, LATENT, NOISE = 6, 2, 0.3


@dataclass(frozen=True)
class FullGaussian:
    """A posterior with any covariance; log_prob puts all of it on the first coordinate."""

    mean: Tensor
    covariance: Tensor

    @property
    def stddev(self) -> Tensor:
        return self.covariance.diagonal().sqrt().expand_as(self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        whole = MultivariateNormal(self.mean, self.covariance).log_prob(value)
        return torch.cat([whole[:, None], torch.zeros_like(value[:, 1:])], 1)

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        noise = torch.randn(*shape, *self.mean.shape, generator=generator)
        return self.mean + noise @ torch.linalg.cholesky(self.covariance).mT


@dataclass(frozen=True)
class Linear:
    """x = W z + b + noise, with its optimal posterior for a weight beta on the KL."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def random(cls, generator: torch.Generator) -> Linear:
        return cls(
            torch.randn(PIXELS, LATENT, generator=generator) / 2,
            torch.rand(PIXELS, generator=generator),
        )

    def precision(self, beta: float) -> Tensor:
        return torch.eye(LATENT) + self.weight.mT @ self.weight / (beta * NOISE**2)

    def posterior_mean(self, x: Tensor, beta: float) -> Tensor:
        right = (x.flatten(1) - self.bias) @ self.weight / (beta * NOISE**2)
        return torch.linalg.solve(self.precision(beta), right.mT).mT

    def vae(self, beta: float, *, full: bool, stretch: float = 1.0) -> rv.VAE:
        def encode(x: Tensor) -> FullGaussian | Gaussian:
            mean = self.posterior_mean(x, beta)
            if full:
                return FullGaussian(mean, self.precision(beta).inverse())
            stddev = stretch / self.precision(beta).diagonal().sqrt()
            return Gaussian(mean, stddev.expand_as(mean))

        def decode(z: Tensor) -> Gaussian:
            mean = (z @ self.weight.mT + self.bias).view(-1, 1, 2, 3)
            return Gaussian(mean, torch.full_like(mean, NOISE))

        return rv.wrap(encode=encode, decode=decode, latent=LATENT, image_shape=(1, 2, 3))

    def log_partition(self, x: Tensor, beta: float) -> Tensor:
        """log of the integral of p(z) p(x|z)^(1/beta), by the marginal of a rescaled model."""
        spread = beta * NOISE**2
        scale = (
            PIXELS / 2 * (math.log(2 * math.pi * spread) - math.log(2 * math.pi * NOISE**2) / beta)
        )
        covariance = self.weight @ self.weight.mT + spread * torch.eye(PIXELS)
        return scale + MultivariateNormal(self.bias, covariance).log_prob(x.flatten(1))


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.rand(5, 1, 2, 3, generator=generator)


@pytest.fixture
def linear(generator: torch.Generator) -> Linear:
    return Linear.random(generator)


@pytest.mark.parametrize("beta", [0.25, 1.0, 2.0, 7.0])
def test_optimal_posterior_reaches_the_log_partition(
    linear: Linear, x: Tensor, beta: float, generator: torch.Generator
) -> None:
    """[Camuto21] Theorem 2: at q* ∝ p(z) p(x|z)^(1/beta) every draw gives beta log Z; at beta = 1
    that is the log likelihood itself. The posterior is no `Gaussian`: the KL is taken at the draw.
    """
    for _ in range(3):
        got = -ELBO(beta)(linear.vae(beta, full=True), x, generator=generator)
        torch.testing.assert_close(got, beta * linear.log_partition(x, beta))


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
def test_diagonal_posterior_matches_the_closed_form(
    linear: Linear, x: Tensor, beta: float, generator: torch.Generator
) -> None:
    vae = linear.vae(beta, full=False)
    q = vae.encode(x)
    residual = x.flatten(1) - linear.bias - q.mean @ linear.weight.mT
    spread = (linear.weight.square() @ q.stddev.square().mT).sum(0)
    distortion = (residual.square().sum(1) + spread) / (2 * NOISE**2)
    distortion += PIXELS / 2 * math.log(2 * math.pi * NOISE**2)
    kl = 0.5 * (q.mean.square() + q.stddev.square() - 1 - 2 * q.stddev.log()).sum(1)

    draws = 4000
    terms = ELBO(beta).terms(vae, x.repeat(draws, 1, 1, 1), generator=generator)
    torch.testing.assert_close(terms["kl"].view(draws, -1), kl.expand(draws, -1))
    for name, wanted in (("distortion", distortion), ("loss", distortion + beta * kl)):
        got = terms[name].view(draws, -1)
        assert ((got.mean(0) - wanted).abs() < 4 * got.std(0) / math.sqrt(draws)).all(), name


@pytest.mark.parametrize("beta", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("stretch", [0.8, 1.25])
def test_diagonal_optimum_inverts_the_precision(
    linear: Linear, x: Tensor, beta: float, stretch: float, generator: torch.Generator
) -> None:
    """Variances 1 / P_jj beat smaller and larger ones, on common noise."""
    many = x.repeat(2000, 1, 1, 1)
    state = generator.get_state()
    best = ELBO(beta)(linear.vae(beta, full=False), many, generator=generator)
    generator.set_state(state)
    other = ELBO(beta)(linear.vae(beta, full=False, stretch=stretch), many, generator=generator)
    gain = other - best
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(gain))


def test_one_sample_kl_is_unbiased(linear: Linear, x: Tensor, generator: torch.Generator) -> None:
    """A Gaussian prior under another type takes the other route to the same number."""
    vae = linear.vae(1.0, full=False)
    with_prior = rv.wrap(
        encode=lambda x: FullGaussian(vae.encode(x).mean, vae.encode(x).stddev[0].square().diag()),
        decode=vae.decode,
        latent=LATENT,
        image_shape=(1, 2, 3),
    )
    exact = ELBO().terms(vae, x, generator=generator)["kl"]
    draws = 4000
    many = x.repeat(draws, 1, 1, 1)
    sampled = ELBO().terms(with_prior, many, generator=generator)["kl"].view(draws, -1)
    assert ((sampled.mean(0) - exact).abs() < 4 * sampled.std(0) / math.sqrt(draws)).all()


def test_kl_to_another_gaussian_prior(x: Tensor, generator: torch.Generator) -> None:
    prior = torch.distributions.Normal(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.7]))
    posterior = torch.distributions.Normal(torch.full((5, 2), 0.2), torch.full((5, 2), 0.4))
    vae = rv.wrap(
        encode=lambda x: posterior,
        decode=lambda z: Bernoulli(torch.zeros(len(z), 1, 2, 3)),
        latent=2,
        image_shape=(1, 2, 3),
        prior=prior,
    )
    terms = ELBO().terms(vae, x, generator=generator)
    wanted = torch.distributions.kl_divergence(posterior, prior).sum(1)
    torch.testing.assert_close(terms["kl"], wanted)
    torch.testing.assert_close(terms["distortion"], torch.full((5,), 6 * math.log(2)))


def test_warm_up_raises_beta_linearly() -> None:
    objective = ELBO(beta=4.0, warmup=8)
    assert [objective.at(step).beta for step in (0, 2, 4, 8, 100)] == [0.0, 1.0, 2.0, 4.0, 4.0]
    assert ELBO(beta=3.0).at(0) == ELBO(beta=3.0)
    assert isinstance(objective, Objective)


def test_called_directly_it_uses_beta(linear: Linear, x: Tensor) -> None:
    vae = linear.vae(1.0, full=False)
    plain, warm = (
        objective(vae, x, generator=rv.generator(3))
        for objective in (ELBO(2.0), ELBO(2.0, warmup=9))
    )
    assert torch.equal(plain, warm)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"beta": -1.0}, errors.RangeError),
        ({"beta": math.nan}, errors.NonFiniteError),
        ({"beta": "1"}, errors.DtypeError),
        ({"warmup": -1}, errors.RangeError),
        ({"warmup": 1.5}, errors.DtypeError),
    ],
)
def test_elbo_rejects_nonsense(options: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        ELBO(**options)  # type: ignore[arg-type]


def test_create_by_name() -> None:
    assert rv.objectives.create("elbo", beta=2.0) == ELBO(beta=2.0)
    with pytest.raises(errors.UnknownNameError, match="elbo"):
        rv.objectives.create("elbow")
    with pytest.raises(errors.UnknownNameError, match="did you mean 'beta'"):
        rv.objectives.create("elbo", betta=2.0)
