import math

import pytest
import torch

from robustvae.errors import DtypeError, RangeError, RobustVAEError, UnknownNameError
from robustvae.mcmc import (
    BatchWide,
    DualAveraging,
    FixedStep,
    Kernel,
    PerChain,
    ess,
    evaluate,
    hmc,
    hmc_step,
    langevin,
    mass_matrix,
)
from robustvae.registry import build
from robustvae.seeding import generator as seeded
from robustvae.seeding import randn
from robustvae.testing import members_of

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
def test_energy_errors_average_to_one(generator, scale):
    state = evaluate(gaussian, exact_draws(4000, generator))
    _, info = hmc_step(
        gaussian,
        state,
        Kernel(step_size=0.5, n_leapfrog=4, mass=mass_matrix(scale)),
        generator=generator,
    )
    assert info.energy_error.std() > 0.02
    assert within_four_errors(torch.exp(-info.energy_error), 1.0, 4000)


@pytest.mark.parametrize("adapt", [PerChain, DualAveraging, FixedStep])
def test_moments_of_a_gaussian(generator, adapt):
    chain = hmc(
        gaussian,
        torch.zeros(8, 2),
        Kernel(step_size=0.3, n_leapfrog=4, jitter=0.2),
        steps=700,
        keep=True,
        generator=generator,
        adaptation=adapt(warmup=200),
    )
    offset = chain.draws - MEAN
    for values, wanted in (
        (chain.draws, MEAN),
        (offset.square(), COVARIANCE.diagonal()),
        (offset.prod(2, keepdim=True), COVARIANCE[0, 1].view(1)),
    ):
        count = ess(values).sum(0)
        assert within_four_errors(values.flatten(0, 1), wanted, count)


def test_force_wrong_leaves_target_right(generator):
    """A stand-in drives, the log density decides: the chain is exact, only less often accepted."""

    def wrong(z):
        return -0.35 * (z - 0.8 * MEAN).square().sum(1) + 0.3 * torch.sin(z).sum(1)

    chain = hmc(
        gaussian,
        exact_draws(4000, generator),
        Kernel(step_size=0.5, n_leapfrog=3, force=wrong),
        steps=6,
        generator=generator,
        adaptation=FixedStep(),
    )
    assert 0.3 < chain.acceptance.mean() < 0.9
    torch.testing.assert_close(chain.log_density, gaussian(chain.z))
    for values, wanted in (
        (chain.z, MEAN),
        ((chain.z - MEAN).square(), COVARIANCE.diagonal()),
        ((chain.z - MEAN).prod(1, keepdim=True), COVARIANCE[0, 1].view(1)),
    ):
        assert within_four_errors(values, wanted, 4000)


def test_trace_log_density_after_each_transition(generator):
    chain = hmc(
        gaussian,
        torch.zeros(3, 2),
        steps=9,
        keep=True,
        generator=generator,
        adaptation=FixedStep(warmup=0),
    )
    torch.testing.assert_close(chain.trace, torch.stack([gaussian(z) for z in chain.draws]))


def test_adjusted_langevin_keeps_the_target(generator):
    z = exact_draws(4000, generator)
    exact, biased = (
        langevin(
            gaussian,
            z,
            Kernel(step_size=0.9, adjust=a),
            steps=20,
            generator=generator,
            adaptation=FixedStep(),
        ).z
        for a in (True, False)
    )
    assert within_four_errors((exact - MEAN).square(), COVARIANCE.diagonal(), 4000)
    assert not within_four_errors((biased - MEAN).square(), COVARIANCE.diagonal(), 4000)


@pytest.mark.parametrize("adapt", [PerChain, DualAveraging])
def test_each_chain_finds_own_step_size(generator, adapt):
    widths = torch.tensor([[0.01], [1.0], [5.0]])

    def log_p(z):
        return -0.5 * (z / widths).square().sum(1)

    chain = hmc(log_p, torch.zeros(3, 4), steps=200, generator=generator, adaptation=adapt())
    assert (chain.acceptance > 0.75).all() and (chain.acceptance < 0.999).all()
    ratio = chain.step_size / widths.squeeze(1)
    assert (ratio > 0.3).all() and (ratio < 2.5).all()


def test_papers_rule_adapts_the_batch(generator):
    chain = hmc(
        gaussian,
        torch.zeros(5, 2),
        Kernel(step_size=0.01),
        steps=10,
        generator=generator,
        adaptation=BatchWide(),
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


def test_diverging_chain_reported_alone_stays(generator):
    stiff = torch.tensor([[1.0], [1e6], [math.nan]])
    chain = hmc(
        lambda z: -0.5 * stiff.squeeze(1) * z.square().sum(1),
        torch.ones(3, 2),
        Kernel(step_size=0.1),
        steps=10,
        generator=generator,
        adaptation=FixedStep(),
    )
    assert chain.divergences.tolist() == [0, 10, 10]
    assert torch.equal(chain.z[1:], torch.ones(2, 2))
    assert chain.acceptance[0] > 0.9 and chain.energy_error.isfinite().all()


def test_a_transition_costs_l_gradients(generator):
    calls = []

    def counted(z):
        calls.append(len(z))
        return gaussian(z)

    chain = hmc(counted, torch.zeros(3, 2), Kernel(n_leapfrog=7), steps=6, generator=generator)
    assert len(calls) == chain.gradients == 1 + 6 * 7


@pytest.mark.parametrize("adapt", [PerChain, DualAveraging, BatchWide, FixedStep])
def test_chain_differentiates_target_depends(adapt):
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5]])
    weight, direction = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([[1.0, -0.7]] * 2)

    def last(x):
        def log_p(z):
            return -0.5 * (torch.tanh(z) - x).square().sum(1) * 3 - 0.5 * z.square().sum(1)

        start = 0.5 * x
        run = hmc(
            log_p,
            start,
            Kernel(step_size=0.4, graph=True),
            steps=6,
            generator=seeded(2),
            adaptation=adapt(),
        )
        return (run.z * weight).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(last(leaf), leaf)
    numerical = (last(x + 1e-6 * direction) - last(x - 1e-6 * direction)) / 2e-6
    assert abs(numerical) > 0.1
    torch.testing.assert_close((gradient * direction).sum(), numerical.detach(), rtol=1e-5, atol=0)


def test_bad_hmc_arguments_are_errors(generator):
    with pytest.raises(RangeError):
        hmc(gaussian, torch.zeros(1, 2), steps=0, generator=generator)
    with pytest.raises(RangeError):
        Kernel(step_size=-0.1)
    with pytest.raises(DtypeError, match="adaptation"):
        hmc(gaussian, torch.zeros(1, 2), steps=1, adaptation="chain", generator=generator)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"jitter": 2}, RangeError),
        ({"jitter": 1.0}, RangeError),
        ({"jitter": -0.1}, RangeError),
        ({"jitter": "0.1"}, DtypeError),
        ({"mass": torch.eye(2)}, DtypeError),
        ({"n_leapfrog": 0}, RangeError),
    ],
)
def test_impossible_kernels_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        Kernel(**options)


@pytest.mark.parametrize("kind", [PerChain, DualAveraging, BatchWide, FixedStep])
@pytest.mark.parametrize(
    ("warmup", "error"), [(-1, RangeError), (6, RangeError), (2.5, DtypeError)]
)
def test_impossible_warmups_are_refused(kind, warmup, error):
    with pytest.raises(error, match="warmup"):
        kind(warmup=warmup).warmup_steps(5)


@pytest.mark.parametrize(("kind", "rate"), [(PerChain, 2), (BatchWide, 0.01)])
def test_first_update_is_its_formula(kind, rate):
    size, seen = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 1.0])
    after = kind(acceptance=0.8).update(kind().begin(size), seen, 0, 10).size
    wanted = size * (1 + rate * (0.75 - 0.8) / 0.8)
    if kind is PerChain:
        wanted = size * torch.exp(rate * (seen - 0.8))
    torch.testing.assert_close(after, wanted)


def test_parts_of_run_adapt_as_whole():
    """Warm-up segments adapt from begin to end, those after it not at all."""
    assert PerChain(0.7).part(0, 3, 10) == PerChain(0.7, warmup=3)
    assert PerChain(0.7).part(5, 3, 10) == FixedStep()
    assert BatchWide(0.7).part(5, 3, 10) == BatchWide(0.7, warmup=0)


def test_mass_matrices_agree_with_each_other(generator):
    vector, index = randn(4, 3, like=MEAN, generator=generator), torch.tensor([2, 0])
    diagonal = randn(4, 3, like=MEAN, generator=generator)
    masses = mass_matrix(diagonal), mass_matrix(torch.diag_embed(diagonal))
    for name in ("velocity", "force"):
        first, second = (getattr(mass, name)(vector) for mass in masses)
        torch.testing.assert_close(first, second)
        part = getattr(masses[1].rows(index), name)(vector[index])
        torch.testing.assert_close(part, second[index])
    lopsided = mass_matrix(randn(4, 3, 3, like=MEAN, generator=generator))
    inner = (lopsided.velocity(vector) * diagonal).sum(1)  # (A p)'g = p'(A'g)
    torch.testing.assert_close(inner, (vector * lopsided.force(diagonal)).sum(1))


ADAPTATIONS = {
    "batch-wide": BatchWide,
    "dual-averaging": DualAveraging,
    "fixed-step": FixedStep,
    "per-chain": PerChain,
}


def test_every_adaptation_has_evidence():
    """Those of the tests above, which hold each to the moments of a Gaussian."""
    assert set(ADAPTATIONS) == members_of("robustvae", "adaptation")


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_defense_takes_adaptations_by_name(name):
    defense = build("defense", f"hmc:adapt={name}")
    assert type(defense.adaptation) is ADAPTATIONS[name]
    given = build("defense", f"hmc:adapt=({name})")
    assert type(given.adaptation) is ADAPTATIONS[name]
    with pytest.raises(UnknownNameError, match="did you mean 'per-chain'"):
        build("defense", "hmc:adapt=per-chian")


@pytest.mark.parametrize(
    ("density", "z", "words"),
    [
        (lambda z: -0.5 * z.square(), torch.zeros(4, 2), "sum over the latent axis"),
        (lambda z: z.sum(1), "z", "z must be a dense real tensor"),
    ],
)
def test_wrong_density_is_explained(density, z, words):
    with pytest.raises(RobustVAEError, match=words):
        hmc(density, z, steps=2, generator=seeded(0))
