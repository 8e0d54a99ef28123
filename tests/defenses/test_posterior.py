import copy
import math

import pytest
import torch
from scipy.optimize import minimize

import robustvae as rv
from robustvae.data import load
from robustvae.defenses import HMC, PosteriorMode, RobustPosterior, RobustTarget, posterior
from robustvae.defenses.targets import fisher_scale
from robustvae.errors import UnsupportedError
from robustvae.mcmc import FixedStep, Kernel, hmc
from robustvae.seeding import randn


def test_posterior_of_linear_vae_is_invariant(linear, generator):
    count = 4000
    x = torch.rand(1, 1, 2, 3, generator=generator).expand(count, -1, -1, -1)
    mean, covariance = linear.posterior_mean(x[:1])[0], linear.covariance
    noise = randn(count, 2, like=mean, generator=generator)
    start = mean + noise @ torch.linalg.cholesky(covariance).mT
    chain = hmc(
        posterior(linear.vae, x),
        start,
        Kernel(step_size=0.15, n_leapfrog=4),
        steps=5,
        generator=generator,
        adaptation=FixedStep(),
    )
    assert 0.5 < chain.acceptance.mean() < 0.98
    offset = chain.z - mean
    for values, wanted in (
        (offset, torch.zeros(2)),
        (offset.square(), covariance.diagonal()),
        (offset.prod(1, keepdim=True), covariance[0, 1].view(1)),
    ):
        assert ((values.mean(0) - wanted).abs() < 4 * values.std(0) / count**0.5).all()


def test_lemma_1_bounds_posterior_difference(linear, generator):
    """[Kuzina22] Lemma 1: for a linear VAE the KL divergence is e'M'S^-1 Me / 2."""
    count = 2000
    x = torch.rand(1, 1, 2, 3, generator=generator)
    e = 0.2 * randn(1, 1, 2, 3, like=x, generator=generator)
    moved = (linear.gain @ e.flatten()).unsqueeze(1)
    exact = (0.5 * moved.mT @ torch.linalg.inv(linear.covariance) @ moved).item()
    clean, corrupted = x.expand(count, -1, -1, -1), (x + e).expand(count, -1, -1, -1)
    z = HMC(steps=40, step_size=0.15)(linear.vae, clean, generator=generator)
    ratio = (
        posterior(linear.vae, clean)(z)
        - linear.log_evidence(x)
        - posterior(linear.vae, corrupted)(z)
        + linear.log_evidence(x + e)
    )
    assert exact > 0.01
    assert abs(ratio.mean() - exact) < 4 * ratio.std() / count**0.5


def test_bfloat16_force_keeps_the_posterior(generator):
    """The energies decide, whatever the trajectory was driven by."""
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
    x = torch.rand(1, 1, 4, 4, generator=generator).expand(400, -1, -1, -1)
    exact, low = (
        HMC(steps=10, step_size=0.3, n_leapfrog=3, force=force, chunk=400)(
            vae, x, generator=generator
        )
        for force in ("exact", "bfloat16")
    )
    assert low.dtype == x.dtype
    for power in (1, 2):
        a, b = exact**power, low**power
        error = ((a.var(0) + b.var(0)) / 400).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * error).all()


def test_bfloat16_force_keeps_exact_energies(generator):
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
    x = torch.rand(5, 1, 4, 4, generator=generator)
    chain = HMC(steps=5, force="bfloat16").run(vae, x, generator=generator)
    torch.testing.assert_close(chain.log_density, vae.log_joint(x, chain.z).detach())
    assert not chain.log_density.requires_grad


def _sure(scale=30.0):
    """A model whose decoder is sure of most pixels."""
    vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
    last = [layer for layer in vae.decoder.modules() if isinstance(layer, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(scale)
    return vae


def test_a_floor_cuts_every_probability(generator):
    """The authors' formula, in probabilities; a pixel beyond pulls at no latent."""
    vae, floor = _sure(), 0.3
    x = torch.rand(5, 1, 4, 4, generator=generator)
    z = randn(5, 2, like=x, generator=generator).requires_grad_()
    p = vae.decode(z).mean.clamp(floor, 1 - floor)
    assert 0.3 < ((p == floor) | (p == 1 - floor)).double().mean() < 0.95
    slow = (x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1)
    slow = slow + vae.prior().log_prob(z).sum(1)
    fast = posterior(vae, x, floor=floor)(z)
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(
        *(torch.autograd.grad(value.sum(), z)[0] for value in (fast, slow)), rtol=1e-6, atol=1e-9
    )


def test_a_small_floor_cuts_nothing(linear, generator):
    vae = _sure(1.0)
    x = torch.rand(3, 1, 4, 4, generator=generator)
    z = randn(3, 2, like=x, generator=generator)
    torch.testing.assert_close(posterior(vae, x, floor=1e-9)(z), vae.log_joint(x, z))
    with pytest.raises(UnsupportedError, match="Bernoulli likelihood, got Gaussian"):
        HMC(steps=2, floor=1e-5)(linear.vae, torch.rand(2, 1, 2, 3), generator=generator)


@pytest.mark.parametrize("options", [{}, {"force": "bfloat16"}, {"plateau": 5}])
def test_a_chain_samples_by_its_floor(options):
    """As on a copy of the model whose decoder never says more."""
    vae, floor = _sure(), 0.3
    copied, limit = copy.deepcopy(vae), math.log((1 - floor) / floor)
    copied.decoder.append(torch.nn.Hardtanh(-limit, limit))
    x = torch.rand(4, 1, 4, 4, generator=rv.generator(1))
    floored, exact = HMC(steps=5, floor=floor, **options), HMC(steps=5, **options)
    z = floored(vae, x, generator=rv.generator(2))
    torch.testing.assert_close(z, exact(copied, x, generator=rv.generator(2)))
    assert (z - exact(vae, x, generator=rv.generator(2))).abs().max() > 0.01


def test_a_force_in_bfloat16_wants_weights(linear, generator):
    with pytest.raises(UnsupportedError, match="weights"):
        HMC(force="bfloat16")(linear.vae, torch.rand(2, 1, 2, 3), generator=generator)


@pytest.mark.parametrize(
    ("search", "tolerance"),
    [
        (PosteriorMode(steps=300), 1e-3),
        (PosteriorMode(steps=15, method="lbfgs"), 1e-6),
        (PosteriorMode(steps=2, method="gauss-newton"), 1e-12),
    ],
    ids=lambda value: getattr(value, "method", None),
)
def test_linear_mode_is_posterior_mean(search, tolerance, linear, generator):
    x = torch.rand(4, 1, 2, 3, generator=generator)
    start = rv.wrap(
        encode=lambda x: torch.distributions.Normal(x.flatten(1)[:, :2], 1.0),
        decode=linear.vae.decode,
        latent=2,
        image_shape=(1, 2, 3),
    )
    z = search(start, x, generator=generator)
    torch.testing.assert_close(z, linear.posterior_mean(x), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("method", "steps", "share"), [("lbfgs", 150, 0.999), ("gauss-newton", 60, 0.9)]
)
@pytest.mark.parametrize("radius", [None, 0.2])
def test_search_climbs_as_high_as_scipys(method, steps, share, radius, generator):
    """On a trained model, whose ReLUs make the top an edge that Gauss-Newton is slow along."""
    vae = rv.load("digits-vae").double()
    x, _ = load("digits", split="test").sample(6, stratified=True, generator=generator)
    x = (x.double() + 0.2 * randn(*x.shape, like=x.double(), generator=generator)).clamp(0, 1)
    if radius is None:
        defense = PosteriorMode(steps=steps, method=method)
        target, starts = posterior(vae, x), vae.encode(x).mean.detach()
    else:
        defense = RobustPosterior(radius=radius, steps=steps, method=method)
        target, starts = RobustTarget(vae, x, "linf", radius), torch.zeros(6, vae.latent)
    with torch.no_grad():
        reached = target(defense(vae, x, generator=generator))
    for i, start in enumerate(starts):
        row = target.rows(torch.tensor([i]))

        def loss(z, row=row):
            leaf = torch.tensor(z)[None].requires_grad_()
            value = -row(leaf).sum()
            return value.item(), torch.autograd.grad(value, leaf)[0].numpy()[0]

        oracle = minimize(loss, start.numpy(), jac=True, method="L-BFGS-B", tol=1e-12)
        begun = target(starts)[i].detach()
        assert reached[i] - begun > share * (-oracle.fun - begun) > 0


def test_fisher_metric_whitens_posterior_linear_vae(linear, generator):
    scale = fisher_scale(linear.vae, torch.zeros(3, 2))
    torch.testing.assert_close(scale @ scale.mT, linear.covariance.expand(3, 2, 2))


@pytest.mark.parametrize("mass", ["identity", "encoder", "fisher"])
def test_every_mass_matrix_samples_the_posterior(mass, linear, generator):
    count = 2000
    x = torch.rand(1, 1, 2, 3, generator=generator).expand(count, -1, -1, -1)
    size = 0.15 if mass == "identity" else 0.7
    z = HMC(steps=30, step_size=size, mass=mass)(linear.vae, x, generator=generator)
    offset = z - linear.posterior_mean(x)
    for values, wanted in (
        (offset, torch.zeros(2)),
        (offset.square(), linear.covariance.diagonal()),
    ):
        assert ((values.mean(0) - wanted).abs() < 4 * values.std(0) / count**0.5).all()


def test_jitter_is_that_of_the_sampler(linear, generator):
    x = torch.rand(4, 1, 2, 3, generator=generator)
    options = {"steps": 6, "step_size": 0.1, "n_leapfrog": 3, "adapt": None}
    jittered, plain = (
        HMC(**options, jitter=jitter)(linear.vae, x, generator=rv.generator(1))
        for jitter in (0.5, 0.0)
    )
    g = rv.generator(1)
    start = rv.PosteriorSample()(linear.vae, x, generator=g)
    kernel = Kernel(step_size=0.1, n_leapfrog=3, jitter=0.5)
    target = posterior(linear.vae, x)
    own = hmc(target, start, kernel, steps=6, adaptation=FixedStep(), generator=g)
    torch.testing.assert_close(jittered, own.z)
    assert (jittered - plain).abs().min() > 1e-6
