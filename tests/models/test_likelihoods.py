import math

import pytest
import torch
from scipy import integrate
from torch.testing import assert_close

import robustvae as rv
from robustvae.models import Bernoulli, ContinuousBernoulli, Gaussian

LOGITS = torch.tensor(
    [-60.0, -9.0, -1.0, -0.101, -0.099, 0.0, 0.05, 0.099, 0.101, 3.0, 40.0]
).double()


def density(logit):
    p = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64))
    return lambda x: p.log_prob(torch.tensor(x, dtype=torch.float64)).exp().item()


@pytest.mark.parametrize("logit", LOGITS.tolist())
def test_continuous_bernoulli_moments_match_integrals(logit):
    f = density(logit)
    points = [0.01, 0.05, 0.5, 0.95, 0.99]
    total = integrate.quad(f, 0, 1, points=points)[0]
    mean = integrate.quad(lambda x: x * f(x), 0, 1, points=points)[0]
    variance = integrate.quad(lambda x: (x - mean) ** 2 * f(x), 0, 1, points=points)[0]
    exact = ContinuousBernoulli(torch.tensor(logit).double(), rule="exact")
    assert total == pytest.approx(1, abs=1e-9)
    assert exact.mean.item() == pytest.approx(mean, abs=1e-9)
    assert exact.stddev.item() == pytest.approx(math.sqrt(variance), abs=1e-8)


def test_continuous_bernoulli_matches_torch():
    logits = torch.linspace(-8, 8, 50).double()
    ours = ContinuousBernoulli(logits, rule="exact")
    theirs = torch.distributions.ContinuousBernoulli(logits=logits)
    x = torch.linspace(0, 1, 50).double()
    assert_close(ours.log_prob(x), theirs.log_prob(x))
    assert_close(ours.mean, theirs.mean)


def test_papers_mean_is_lambda():
    assert_close(ContinuousBernoulli(LOGITS).mean, torch.sigmoid(LOGITS))


@pytest.mark.parametrize("rule", ["papers", "exact"])
def test_continuous_bernoulli_gradients_finite_and_right(rule):
    logits = LOGITS.clone().requires_grad_()
    x = torch.full_like(logits, 0.3)

    def both(value):
        p = ContinuousBernoulli(value, rule)
        return p.mean.sum() + p.log_prob(x).sum()

    (gradient,) = torch.autograd.grad(both(logits), logits)
    step = 1e-6
    for i in range(len(logits)):
        move = torch.zeros_like(logits)
        move[i] = step
        difference = (both(logits + move) - both(logits - move)) / (2 * step)
        assert_close(gradient[i], difference, rtol=1e-5, atol=1e-6)


def test_bernoulli_scores_gray_pixels_cross_entropy():
    logits, x = torch.randn(4, 5), torch.rand(4, 5)
    wanted = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    assert_close(Bernoulli(logits).log_prob(x), wanted)


def test_gaussian_matches_torch():
    mean, stddev, x = torch.randn(3, 2), torch.rand(3, 2) + 0.1, torch.randn(3, 2)
    assert_close(
        Gaussian(mean, stddev).log_prob(x), torch.distributions.Normal(mean, stddev).log_prob(x)
    )


@pytest.mark.parametrize(
    "distribution",
    [
        Gaussian(torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()),
        Bernoulli(torch.tensor([-1.0, 2.0]).double()),
        ContinuousBernoulli(torch.tensor([-4.0, 0.01]).double(), rule="exact"),
        torch.distributions.Normal(torch.zeros(2).double(), torch.ones(2).double()),
        torch.distributions.Laplace(torch.zeros(2).double(), torch.ones(2).double()),
    ],
    ids=lambda d: type(d).__module__.split(".")[0] + type(d).__name__,
)
def test_draws_mean_and_spread_of_distribution(distribution):
    n = 40_000
    state = torch.random.get_rng_state()
    drawn = rv.draw(distribution, (n,), generator=rv.generator(0))
    again = rv.draw(distribution, (n,), generator=rv.generator(0))
    assert_close(drawn, again)
    assert torch.equal(state, torch.random.get_rng_state())
    error = distribution.stddev / math.sqrt(n)
    assert ((drawn.mean(0) - distribution.mean).abs() < 4.5 * error).all()
    assert_close(drawn.std(0), distribution.stddev, rtol=0.03, atol=0)


def test_gaussian_draws_carry_gradients():
    mean = torch.zeros(3, requires_grad=True)
    rv.draw(Gaussian(mean, torch.ones(3)), generator=rv.generator(0)).sum().backward()
    assert_close(mean.grad, torch.ones(3))


def test_unknown_rule_is_refused():
    with pytest.raises(rv.errors.UnknownNameError, match="exact"):
        ContinuousBernoulli(torch.zeros(1), rule="exakt")
