"""Defenses of hierarchies: one flat latent, every layer climbed or sampled at once."""

import pytest
import torch

import robustvae as rv
from robustvae.defenses import HMC, PosteriorMode, RobustPosterior, RobustTarget, posterior
from robustvae.defenses.targets import fisher_scale
from robustvae.mcmc import Kernel, evaluate, hmc_step
from robustvae.seeding import generator as seeded
from robustvae.seeding import rand, randn

KINDS = {"dlgm": [3, 2], "seatbelt": [3, 2], "deep dlgm": [3, 2, 2]}


def linear_hierarchy(kind, generator):
    """x | z ~ N(W z + b, s^2) with linear means between layers: everything is jointly normal."""
    vae = rv.models.create(
        kind.split()[-1],
        architecture="mlp",
        widths=KINDS[kind],
        image_shape=(1, 2, 3),
        hidden=[],
        between=[],
        likelihood="gaussian",
        scale=0.3,
    )
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            weight.copy_(0.5 * randn(*weight.shape, like=weight, generator=generator))
            if "down" in name and "log_var_head.weight" in name:
                weight.zero_()
    return vae


def exact_posterior(vae, x):
    """Mean (B, d) and covariance (d, d), by conditioning the normal that draws layer by layer."""
    top = vae.widths[-1]
    mean, factor = torch.zeros(top), torch.eye(top)  # of (z^l, ..., z^L), in the noises so far
    above = top
    with torch.no_grad():
        for link in reversed(vae.down):
            weight, bias = link.mean_head.weight, link.mean_head.bias
            spread = torch.diag(torch.exp(0.5 * link.log_var_head.bias))
            here = torch.cat([weight @ factor[:above], spread], 1)
            factor = torch.nn.functional.pad(factor, (0, len(weight)))
            mean = torch.cat([weight @ mean[:above] + bias, mean])
            factor, above = torch.cat([here, factor]), len(weight)
        offset = vae.decode(torch.zeros(1, vae.latent)).mean.flatten()
        columns = vae.decode(torch.eye(vae.latent)).mean.flatten(1) - offset
    prior = factor @ factor.mT
    gain = torch.linalg.solve(
        columns.mT @ prior @ columns + 0.3**2 * torch.eye(6), columns.mT @ prior
    )
    gap = x.flatten(1) - offset - mean @ columns
    return mean + gap @ gain, prior - prior @ columns @ gain


def is_law(z, mean, covariance):
    """Means and all second moments within four standard errors."""
    offset = z - mean
    products = (offset.unsqueeze(2) * offset.unsqueeze(1)).flatten(1)
    for values, wanted in ((offset, torch.zeros(z.shape[1])), (products, covariance.flatten())):
        error = values.std(0) / len(z) ** 0.5
        if not ((values.mean(0) - wanted).abs() < 4 * error + 1e-12).all():
            return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_hmc_keeps_posterior_over_all_layers(kind, generator):
    vae = linear_hierarchy(kind, generator)
    x = rand(1, 1, 2, 3, like=torch.zeros(()), generator=generator).expand(3000, -1, -1, -1)
    mean, covariance = exact_posterior(vae, x)
    factor = torch.linalg.cholesky(covariance)
    start = mean + randn(3000, vae.latent, like=mean, generator=generator) @ factor.mT
    state = evaluate(posterior(vae, x), start)
    size = 0.9 * covariance.diagonal().min().sqrt().item()
    for _ in range(4):
        state, info = hmc_step(
            posterior(vae, x), state, Kernel(step_size=size, n_leapfrog=4), generator=generator
        )
    assert 0.5 < info.acceptance.mean() < 0.999
    assert is_law(state.z, mean, covariance)
    assert not is_law(state.z + 0.3 * covariance.diagonal().sqrt(), mean, covariance)


@pytest.mark.parametrize("kind", KINDS)
def test_defense_finds_it_from_encoder(kind, generator):
    vae = linear_hierarchy(kind, generator)
    x = rand(1, 1, 2, 3, like=torch.zeros(()), generator=generator).expand(1500, -1, -1, -1)
    z = HMC(steps=60, step_size=0.7, n_leapfrog=4, mass="fisher", chunk=1500)(
        vae, x, generator=generator
    )
    assert is_law(z, *exact_posterior(vae, x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_fisher_metric_whitens_all_layers(kind, generator):
    vae = linear_hierarchy(kind, generator)
    x = torch.rand(2, 1, 2, 3, generator=generator)
    scale = fisher_scale(vae, randn(2, vae.latent, like=x, generator=generator))
    _, covariance = exact_posterior(vae, x)
    torch.testing.assert_close(scale @ scale.mT, covariance.expand(2, -1, -1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("search", "tolerance"),
    [
        (PosteriorMode(steps=2000, rate=0.05), 1e-3),
        (PosteriorMode(steps=40, method="lbfgs"), 1e-6),
        (PosteriorMode(steps=2, method="gauss-newton"), 1e-10),
    ],
    ids=lambda value: getattr(value, "method", None),
)
def test_the_mode_is_the_posterior_mean(kind, search, tolerance, generator):
    vae = linear_hierarchy(kind, generator)
    x = torch.rand(4, 1, 2, 3, generator=generator)
    z = search(vae, x, generator=generator)
    torch.testing.assert_close(z, exact_posterior(vae, x)[0], atol=tolerance, rtol=tolerance)


def models():
    with torch.random.fork_rng():
        torch.random.default_generator.set_state(seeded(3).get_state())
        return {
            "dlgm": rv.models.create("dlgm", widths=[4, 3], image_shape=(1, 4, 4), hidden=[16]),
            "seatbelt": rv.models.create(
                "seatbelt", widths=[4, 3], image_shape=(1, 4, 4), hidden=[16]
            ),
            "nvae": rv.models.create("nvae", image_shape=(1, 4, 4), groups=[1, 1], channels=4),
        }


@pytest.mark.parametrize("kind", ["dlgm", "seatbelt", "nvae"])
def test_no_attack_worsens_hierarchy_code(kind, generator):
    """The robust posterior's lemma asks nothing of the prior: U_R(z; x + e) <= U_0(z; x)."""
    vae = models()[kind].eval()
    x = torch.rand(60, 1, 4, 4, generator=generator)
    z = randn(60, vae.latent, like=x, generator=generator)
    x_adv = (x + 0.2 * randn(*x.shape, like=x, generator=generator).sign()).clamp(0, 1)
    with torch.no_grad():
        robust = -RobustTarget(vae, x_adv, "linf", 0.2)(z)
        plain = -RobustTarget(vae, x, "linf", 1e-12)(z)
    assert (robust <= plain + 1e-7).all() and (robust < plain - 0.1).any()


@pytest.mark.parametrize("kind", ["dlgm", "seatbelt", "nvae"])
def test_layer_moved_joint_density_rises(kind, generator):
    vae = models()[kind]
    x = torch.rand(3, 1, 4, 4, generator=generator)
    with torch.no_grad():
        vae.eval()
        start = vae.encode(x).mean
        before = vae.log_joint(x, start)
    for defense in (PosteriorMode(steps=40), RobustPosterior(radius=0.1, steps=40)):
        z = defense(vae, x, generator=generator)
        with torch.no_grad():
            if isinstance(defense, PosteriorMode):
                assert (vae.log_joint(x, z) > before).all()
            else:
                target = RobustTarget(vae, x, "linf", 0.1)
                assert (target(z) > target(vae.prior().mean.expand_as(z))).all()
        for width, moved in zip(vae.widths, (z - start).split(vae.widths, 1), strict=True):
            assert moved.shape[1] == width and (moved.abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("kind", ["dlgm", "seatbelt", "nvae"])
def test_hmc_runs_layers_without_divergences(kind, generator):
    vae = models()[kind].eval()
    x = torch.rand(4, 1, 4, 4, generator=generator)
    chain = HMC(steps=30, step_size=0.05).run(vae, x, generator=generator)
    assert (chain.acceptance > 0.5).all() and not chain.divergences.any()
    assert (chain.z.split(vae.widths, 1)[-1].abs().amax(1) > 1e-3).all()
