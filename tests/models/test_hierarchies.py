"""Hierarchies: the flat latent is a joint of chained Gaussians, and its special cases hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.testing import assert_close

import robustvae as rv
from robustvae.attacks import OutputTarget
from robustvae.models import Gaussian, LayeredGaussian, checkpoint
from robustvae.models.hierarchy import chain
from robustvae.objectives import ELBO, TotalCorrelation
from robustvae.seeding import by_row, randn

OPTIONS = {"architecture": "conv8", "between": [8]}


def hierarchy(name: str, widths: list[int]) -> rv.VAE:
    vae = rv.models.create(name, widths=widths, **OPTIONS)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(3.0)  # otherwise no layer says much about the next
    return vae


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=generator)


class LinearChain:
    """z^1 ~ N(m, diag s^2), z^2 = A z^1 + b + N(0, diag t^2), and so on: jointly Gaussian."""

    def __init__(self, widths: tuple[int, ...], upwards: bool, generator: torch.Generator) -> None:
        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        order = list(widths if upwards else reversed(widths))
        self.widths, self.upwards = widths, upwards
        self.first = Gaussian(randn(order[0]), randn(order[0]).exp())
        self.maps = [(randn(b, a), randn(b), randn(b).exp()) for a, b in itertools.pairwise(order)]

    def layered(self) -> LayeredGaussian:
        def link(matrix: Tensor, shift: Tensor, spread: Tensor) -> Callable[[Tensor], Gaussian]:
            return lambda z: Gaussian(
                z @ matrix.mT + shift, spread.expand(*z.shape[:-1], len(spread))
            )

        links = tuple(link(*parts) for parts in self.maps)
        return LayeredGaussian(chain(self.first, links), self.widths, self.upwards)

    def joint(self) -> MultivariateNormal:
        mean, root = self.first.mean, self.first.stddev.diag()
        means, roots = [mean], [root]
        for matrix, shift, spread in self.maps:
            mean = matrix @ mean + shift
            root = torch.cat([matrix @ root, spread.diag()], 1)
            means.append(mean)
            roots.append(root)
        size = roots[-1].shape[1]
        wide = [torch.nn.functional.pad(r, (0, size - r.shape[1])) for r in roots]
        if not self.upwards:
            means, wide = means[::-1], wide[::-1]
        whole = torch.cat(wide)
        return MultivariateNormal(torch.cat(means), whole @ whole.mT)


@pytest.mark.parametrize("upwards", [True, False])
@pytest.mark.parametrize("widths", [(3,), (2, 3), (3, 2, 1)])
def test_chain_of_linear_maps_joint_gaussian(
    widths: tuple[int, ...], upwards: bool, generator: torch.Generator
) -> None:
    chain = LinearChain(widths, upwards, generator)
    layered, joint = chain.layered(), chain.joint()
    assert_close(layered.mean, joint.mean)
    z = torch.randn(7, sum(widths), generator=generator)
    assert_close(layered.log_prob(z).sum(1), joint.log_prob(z))
    draws = 20_000
    drawn = rv.draw(layered, (draws,), generator=generator)
    error = joint.covariance_matrix.diag().sqrt() / math.sqrt(draws)
    assert ((drawn.mean(0) - joint.mean).abs() < 4.5 * error).all()
    white = torch.linalg.solve_triangular(joint.scale_tril, (drawn - joint.mean).mT, upper=False)
    assert (
        (white @ white.mT / draws - torch.eye(len(white))).abs() < 4.5 * 2**0.5 * draws**-0.5
    ).all()


@pytest.mark.parametrize("name", ["dlgm", "seatbelt"])
def test_joint_is_product_of_layers(name: str, x: Tensor) -> None:
    """log p(x, z) and log q(z | x) written out by hand for three layers."""
    vae = hierarchy(name, [4, 3, 2])
    z = rv.draw(vae.encode(x), generator=rv.generator(1))
    one, two, three = z.split([4, 3, 2], dim=1)

    def log_prob(q: Gaussian, value: Tensor) -> Tensor:
        return Normal(q.mean, q.stddev).log_prob(value).sum(1)

    seen = one if name == "dlgm" else torch.cat([one, two, three], 1)
    likelihood = (
        -torch.nn.functional.binary_cross_entropy_with_logits(
            vae.decoder(seen), x, reduction="none"
        )
        .flatten(1)
        .sum(1)
    )
    prior = (
        log_prob(vae.down[0](two), one)
        + log_prob(vae.down[1](three), two)
        + Normal(0.0, 1.0).log_prob(three).sum(1)
    )
    assert_close(vae.log_joint(x, z), likelihood + prior)
    q = vae.encode(x)
    posterior = log_prob(vae.up[0](one), two) + log_prob(vae.up[1](two), three)
    first = q.at(z)
    posterior = posterior + Normal(first.mean, first.stddev).log_prob(z)[:, :4].sum(1)
    assert_close(first.mean[:, :4], vae.mean_head(vae.trunk(x)))
    assert_close(q.log_prob(z).sum(1), posterior)
    path = [vae.mean_head(vae.trunk(x))]
    for link in vae.up:
        path.append(link(path[-1]).mean)
    assert_close(q.mean, torch.cat(path, 1))
    assert_close(q.stddev[:, -2:], vae.up[1](path[1]).stddev)


def test_dlgm_likelihood_reads_lowest_layer(generator: torch.Generator) -> None:
    z = torch.randn(4, 9, generator=generator, requires_grad=True)
    for name, reads in (("dlgm", 4), ("seatbelt", 9)):
        (slope,) = torch.autograd.grad(hierarchy(name, [4, 3, 2]).decode(z).mean.sum(), z)
        assert (slope != 0).all(0).tolist() == [True] * reads + [False] * (9 - reads)


def test_elbo_below_the_exact_likelihood(x: Tensor) -> None:
    """The closed-form KL between conditionals has the mean of log p(x, z) - log q(z | x)."""
    vae, draws = hierarchy("seatbelt", [4, 3, 2]), 3000
    many = x[:2].repeat(draws, 1, 1, 1)
    with torch.no_grad():
        terms = ELBO().terms(vae, many, generator=rv.generator(3))
        q = vae.encode(many)
        z = rv.draw(q, generator=rv.generator(3))
        bound = vae.log_joint(many, z) - q.log_prob(z).sum(1)
    assert_close(terms["kl"], terms["kl_1"] + terms["kl_2"] + terms["kl_3"])
    gap = (terms["loss"] + bound).view(draws, 2)
    assert gap.std(0).min() > 0.1
    assert (gap.mean(0).abs() < 4 * gap.std(0) / math.sqrt(draws)).all()


@pytest.mark.parametrize("name", ["dlgm", "seatbelt"])
def test_one_layer_seatbelt_is_tcvae(name: str, x: Tensor) -> None:
    one = hierarchy(name, [3])
    vae = rv.models.create("vae", architecture="conv8", latent=3)
    vae.load_state_dict(one.state_dict())
    for objective in (ELBO(beta=2.0), TotalCorrelation(5.0, 40, sampling="mss")):
        got = objective.terms(one, x, generator=rv.generator(2))
        wanted = objective.terms(vae, x, generator=rv.generator(2))
        assert set(got) == set(wanted)
        for term, values in wanted.items():
            assert_close(got[term], values, msg=term)


@pytest.mark.parametrize("name", ["dlgm", "seatbelt"])
@pytest.mark.parametrize("sampling", ["mws", "mss"])
def test_beta_hierarchy_sample_top_kl(name: str, sampling: str, x: Tensor) -> None:
    """[Willetts21] section 3: beta = 1 is a DLGM, for Seatbelts with the likelihood of all layers;
    term by term: the likelihood, the KLs below the top, the three terms of the top.
    """
    vae = hierarchy(name, [4, 3, 2])
    got = TotalCorrelation(1.0, 40, sampling=sampling).terms(vae, x, generator=rv.generator(2))
    elbo = ELBO().terms(vae, x, generator=rv.generator(2))
    z = rv.draw(vae.encode(x), generator=rv.generator(2))
    top = vae.encode(x).log_prob(z)[:, -2:].sum(1) - vae.prior().log_prob(z)[:, -2:].sum(1)
    for term in ("distortion", "kl_1", "kl_2"):
        assert_close(got[term], elbo[term], msg=term)
    assert_close(got["index_code"] + got["total_correlation"] + got["dimension_kl"], top)
    assert_close(got["loss"], elbo["loss"] - elbo["kl_3"] + top)


def test_top_aggregate_runs_over_draws_layer(x: Tensor) -> None:
    vae, size = hierarchy("seatbelt", [4, 2]), 40
    terms = TotalCorrelation(6.0, size).terms(vae, x, generator=rv.generator(2))
    z = rv.draw(vae.encode(x), generator=rv.generator(2))
    given = vae.up[0](z[:, :4])
    pairs = torch.stack([Normal(given.mean, given.stddev).log_prob(row) for row in z[:, 4:]])
    log_joint = pairs.sum(2).exp().sum(1).log() - math.log(size * len(x))
    log_product = (pairs.exp().sum(1).log() - math.log(size * len(x))).sum(1)
    assert_close(terms["total_correlation"], log_joint - log_product)
    index_code = Normal(given.mean, given.stddev).log_prob(z[:, 4:]).sum(1) - log_joint
    assert_close(terms["index_code"], index_code)


def test_free_bits_floor_batch_averages(x: Tensor) -> None:
    vae = hierarchy("dlgm", [4, 3, 2])
    terms = ELBO().terms(vae, x, generator=rv.generator(2))
    layers = [terms[f"kl_{i}"].detach() for i in (1, 2, 3)]
    means = sorted(float(kl.mean()) for kl in layers)
    bits = (means[0] + means[1]) / 2
    got = ELBO(beta=2.0, free_bits=bits).terms(vae, x, generator=rv.generator(2))
    kept = sum(kl if kl.mean() > bits else torch.full_like(kl, bits) for kl in layers)
    assert_close(got["loss"], terms["distortion"] + 2.0 * kept)
    assert_close(got["kl"], terms["kl"])


def test_elbo_attack_compares_layers_along_mean(x: Tensor) -> None:
    """[Willetts21] Eq. 9: the KL of every layer, given the means of the layers it depends on."""
    vae = hierarchy("seatbelt", [4, 2])
    goal = OutputTarget(x.flip(0), form="elbo", draws=3)
    score = goal.bind(rv.Victim(vae), x, generator=rv.generator(2))(x, torch.arange(5))
    q = vae.encode(x)
    streams = by_row(rv.generator(2), "target", x)
    noise = randn(3, 5, 6, like=x, generator=streams, axis=1)
    likelihood = [
        vae.decode(z).log_prob(x.flip(0)).flatten(1).sum(1) for z in q.mean + noise * q.stddev
    ]
    lower = vae.down[0](q.mean[:, 4:])
    p_mean = torch.cat([lower.mean, torch.zeros(5, 2)], 1)
    p_stddev = torch.cat([lower.stddev, torch.ones(5, 2)], 1)
    kl = torch.distributions.kl_divergence(Normal(q.mean, q.stddev), Normal(p_mean, p_stddev))
    assert_close(score, torch.stack(likelihood).mean(0) - kl.sum(1))


def test_a_checkpoint_keeps_a_hierarchy(tmp_path: Path, x: Tensor) -> None:
    for name in ("dlgm", "seatbelt"):
        vae = hierarchy(name, [4, 3, 2]).eval()
        again = checkpoint.load(checkpoint.save(vae, tmp_path / name))
        assert_close(again.encode(x).mean, vae.encode(x).mean)
        assert_close(again.prior().mean, vae.prior().mean)
