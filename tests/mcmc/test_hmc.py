import math

import pytest
import torch

from robustvae.errors import DtypeError, RangeError, UnknownNameError
from robustvae.mcmc import ess, evaluate, hmc, hmc_step, langevin
from robustvae.seeding import generator as seeded
from robustvae.seeding import randn

COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)


def gaussian(z):
    return torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(z)


def exact_draws(n, generator):
    noise = randn(n, 2, like=MEAN, generator=generator)
    return MEAN + noise @ torch.linalg.cholesky(COVARIANCE).mT


def within_four_errors(values, wanted, count):
    return bool(((values.mean(0) - wanted).abs() < 4 * values.std(0) / count**0.5).all())


@pytest.mark.parametrize("scale", [None, torch.linalg.cholesky(COVARIANCE).expand(4000, 2, 2)])
def test_mean_of_exp_of_minus_the_energy_error_is_one_in_equilibrium(generator, scale):
    state = evaluate(gaussian, exact_draws(4000, generator))
    _, info = hmc_step(gaussian, state, step=0.5, n_steps=4, scale=scale, generator=generator)
    assert info.energy_error.std() > 0.02
    assert within_four_errors(torch.exp(-info.energy_error), 1.0, 4000)


@pytest.mark.parametrize("adapt", ["chain", "dual", None])
def test_moments_of_a_gaussian(generator, adapt):
    chain = hmc(
        gaussian,
        torch.zeros(8, 2),
        steps=700,
        step_size=0.3,
        n_leapfrog=4,
        adapt=adapt,
        warmup=200,
        jitter=0.2,
        keep=True,
        generator=generator,
    )
    offset = chain.draws - MEAN
    for values, wanted in (
        (chain.draws, MEAN),
        (offset.square(), COVARIANCE.diagonal()),
        (offset.prod(2, keepdim=True), COVARIANCE[0, 1].view(1)),
    ):
        count = ess(values).sum(0)
        assert within_four_errors(values.flatten(0, 1), wanted, count)


def test_a_force_that_is_wrong_leaves_the_target_right(generator):
    """A stand-in drives, the log density decides: the chain is exact, only less often accepted."""

    def wrong(z):
        return -0.35 * (z - 0.8 * MEAN).square().sum(1) + 0.3 * torch.sin(z).sum(1)

    chain = hmc(
        gaussian,
        exact_draws(4000, generator),
        steps=6,
        step_size=0.5,
        n_leapfrog=3,
        adapt=None,
        force=wrong,
        generator=generator,
    )
    assert 0.3 < chain.acceptance.mean() < 0.9
    torch.testing.assert_close(chain.log_density, gaussian(chain.z))
    for values, wanted in (
        (chain.z, MEAN),
        ((chain.z - MEAN).square(), COVARIANCE.diagonal()),
        ((chain.z - MEAN).prod(1, keepdim=True), COVARIANCE[0, 1].view(1)),
    ):
        assert within_four_errors(values, wanted, 4000)


def test_the_trace_is_the_log_density_after_each_transition(generator):
    chain = hmc(
        gaussian, torch.zeros(3, 2), steps=9, warmup=0, adapt=None, keep=True, generator=generator
    )
    torch.testing.assert_close(chain.trace, torch.stack([gaussian(z) for z in chain.draws]))


def test_langevin_adjusted_keeps_the_target_and_unadjusted_only_nearly(generator):
    z = exact_draws(4000, generator)
    exact, biased = (
        langevin(gaussian, z, steps=20, step_size=0.9, adjust=a, adapt=None, generator=generator).z
        for a in (True, False)
    )
    assert within_four_errors((exact - MEAN).square(), COVARIANCE.diagonal(), 4000)
    assert not within_four_errors((biased - MEAN).square(), COVARIANCE.diagonal(), 4000)


@pytest.mark.parametrize("adapt", ["chain", "dual"])
def test_each_chain_finds_its_own_step_size(generator, adapt):
    widths = torch.tensor([[0.01], [1.0], [5.0]])

    def log_p(z):
        return -0.5 * (z / widths).square().sum(1)

    chain = hmc(log_p, torch.zeros(3, 4), steps=200, adapt=adapt, generator=generator)
    assert (chain.acceptance > 0.75).all() and (chain.acceptance < 0.999).all()
    ratio = chain.step_size / widths.squeeze(1)
    assert (ratio > 0.3).all() and (ratio < 2.5).all()


def test_the_papers_rule_moves_one_step_size_for_the_batch(generator):
    chain = hmc(
        gaussian, torch.zeros(5, 2), steps=10, step_size=0.01, adapt="paper", generator=generator
    )
    assert (chain.step_size == chain.step_size[0]).all()
    assert math.isclose(chain.step_size[0], 0.01 * (1 + 0.01 * 0.1 / 0.9) ** 10, rel_tol=1e-3)


def test_chains_do_not_touch_each_other():
    def log_p(center):
        return lambda z: -0.5 * (z - center).square().sum(1)

    center, other = torch.zeros(3, 2), torch.tensor([[900.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    runs = [
        hmc(log_p(c), torch.zeros(3, 2), steps=30, generator=seeded(5)).z for c in (center, other)
    ]
    assert torch.equal(runs[0][1:], runs[1][1:])
    assert not torch.equal(runs[0][0], runs[1][0])


def test_a_diverging_chain_is_reported_alone_and_stays_where_it_was(generator):
    stiff = torch.tensor([[1.0], [1e6], [math.nan]])
    chain = hmc(
        lambda z: -0.5 * stiff.squeeze(1) * z.square().sum(1),
        torch.ones(3, 2),
        steps=10,
        step_size=0.1,
        adapt=None,
        generator=generator,
    )
    assert chain.divergences.tolist() == [0, 10, 10]
    assert torch.equal(chain.z[1:], torch.ones(2, 2))
    assert chain.acceptance[0] > 0.9 and chain.energy_error.isfinite().all()


def test_a_transition_costs_l_gradients(generator):
    calls = []

    def counted(z):
        calls.append(len(z))
        return gaussian(z)

    chain = hmc(counted, torch.zeros(3, 2), steps=6, n_leapfrog=7, generator=generator)
    assert len(calls) == chain.gradients == 1 + 6 * 7


@pytest.mark.parametrize("adapt", ["chain", "dual", "paper", None])
def test_the_chain_differentiates_by_what_its_target_depends_on(adapt):
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5]])
    weight, direction = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([[1.0, -0.7]] * 2)

    def last(x):
        def log_p(z):
            return -0.5 * (torch.tanh(z) - x).square().sum(1) * 3 - 0.5 * z.square().sum(1)

        start = 0.5 * x
        run = hmc(
            log_p, start, steps=6, step_size=0.4, adapt=adapt, graph=True, generator=seeded(2)
        )
        return (run.z * weight).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(last(leaf), leaf)
    numerical = (last(x + 1e-6 * direction) - last(x - 1e-6 * direction)) / 2e-6
    assert abs(numerical) > 0.1
    torch.testing.assert_close((gradient * direction).sum(), numerical.detach(), rtol=1e-5, atol=0)


def test_refusals(generator):
    with pytest.raises(RangeError):
        hmc(gaussian, torch.zeros(1, 2), steps=0, generator=generator)
    with pytest.raises(RangeError):
        hmc(gaussian, torch.zeros(1, 2), steps=1, step_size=-0.1, generator=generator)
    with pytest.raises(UnknownNameError, match="chain"):
        hmc(gaussian, torch.zeros(1, 2), steps=1, adapt="chian", generator=generator)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"jitter": 2}, RangeError),
        ({"jitter": 1.0}, RangeError),
        ({"jitter": -0.1}, RangeError),
        ({"jitter": "0.1"}, DtypeError),
        ({"warmup": -1}, RangeError),
        ({"warmup": 6}, RangeError),
        ({"warmup": 2.5}, DtypeError),
    ],
)
def test_step_sizes_and_warm_ups_that_make_no_chain_are_refused(options, error, generator):
    with pytest.raises(error, match=next(iter(options))):
        hmc(gaussian, torch.zeros(3, 2), steps=5, generator=generator, **options)
