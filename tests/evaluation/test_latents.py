"""Codes: collapsed coordinates, an aggregate posterior made the slow way, and a probe."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.evaluation import active_units, aggregate_terms, linear_probe
from robustvae.models import Gaussian

SHAPE = (1, 2, 2)


def known(mean, stddev, latent):
    def decode(z):
        flat = torch.zeros(len(z), *SHAPE)
        return Gaussian(flat, torch.ones_like(flat))

    return rv.wrap(
        encode=lambda x: Gaussian(mean(x.flatten(1)), stddev(x.flatten(1))),
        decode=decode,
        latent=latent,
        image_shape=SHAPE,
    )


def test_collapsed_model_has_no_active_units(generator):
    x = torch.rand(200, *SHAPE, generator=generator).flatten(1)
    assert not active_units(torch.zeros(200, 3)).any()
    assert active_units(torch.stack([x[:, 0], 0 * x[:, 0], 0.1 * x[:, 1]], 1)).tolist() == [
        True,
        False,
        False,
    ]
    assert active_units(torch.stack([x[:, 0], 0.1 * x[:, 1]], 1), threshold=1e-4).all()
    with pytest.raises(errors.ShapeError):
        active_units(torch.zeros(1, 3))


def test_collapsed_model_carries_no_information(generator):
    x = torch.rand(50, *SHAPE, generator=generator)
    vae = known(lambda f: 0 * f[:, :2], lambda f: torch.ones(len(f), 2), 2)
    for values in aggregate_terms(vae, x, draws=50, generator=generator).values():
        assert_close(values, torch.zeros(50), atol=1e-12, rtol=0)


def test_terms_of_mixture_written_out(generator):
    """A grid over the plane, with the densities of the mixture of four Gaussians as they stand."""
    x = torch.rand(4, *SHAPE, generator=generator)
    vae = known(lambda f: 3 * f[:, :2] + f[:, 1:3], lambda f: 0.3 + 0.4 * f[:, 2:4], 2)
    q = vae.encode(x)
    ticks = torch.linspace(-4, 9, 700)
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="ij"), -1).flatten(0, 1)
    single = Gaussian(q.mean[:, None], q.stddev[:, None]).log_prob(grid).sum(2).exp()
    joint = single.mean(0)
    cell = float(ticks[1] - ticks[0]) ** 2
    table = joint.view(700, 700) * math.sqrt(cell)
    product = (table.sum(1)[:, None] * table.sum(0)).flatten()
    prior = torch.distributions.Normal(0, 1).log_prob(grid).sum(1)
    assert abs(float(joint.sum()) * cell - 1) < 1e-6

    def average(log_ratio, density):
        return float((density * log_ratio).nan_to_num(0).sum()) * cell

    exact = {
        "index_code": sum(average((s / joint).log(), s) for s in single) / 4,
        "total_correlation": average((joint / product).log(), joint),
        "dimension_kl": average(product.log() - prior, joint),
    }
    runs = [aggregate_terms(vae, x, draws=4, generator=generator) for _ in range(600)]
    for key, value in exact.items():
        means = torch.stack([run[key].mean() for run in runs])
        assert abs(float(means.mean()) - value) < 4 * float(means.std()) / math.sqrt(600), key


def test_terms_of_hierarchy_are_top_layers(generator):
    vae = rv.models.create("dlgm", widths=[4, 2], image_shape=(1, 8, 8), hidden=[16], between=[8])
    x = rv.data.load("digits", split="test").x[:30].double()
    terms = aggregate_terms(vae, x, draws=30, generator=rv.generator(5))
    total = torch.stack(list(terms.values())).sum(0)
    z = rv.draw(vae.encode(x), generator=rv.generator(5))
    q = rv.models.conditionals(vae.encode(x), z)
    assert_close(total, (q.log_prob(z) - vae.prior().log_prob(z))[:, 4:].sum(1).detach())
    assert (terms["index_code"] <= math.log(30) + 1e-9).all()


def test_chunks_give_equal_rows(generator, monkeypatch):
    from robustvae.evaluation import latents

    vae = known(lambda f: 3 * f[:, :2], lambda f: 0.3 + 0.4 * f[:, 2:4], 2)
    x = torch.rand(40, *SHAPE, generator=generator)
    whole = aggregate_terms(vae, x, draws=11, generator=rv.generator(1))
    monkeypatch.setattr(latents, "_PAIRS", 100)
    assert_close(aggregate_terms(vae, x, draws=11, generator=rv.generator(1)), whole)


def test_aggregate_needs_gaussian_posteriors(generator):
    x = torch.rand(4, *SHAPE, generator=generator)
    vae = known(lambda f: f[:, :2], lambda f: 1 + f[:, :2], 2)
    with pytest.raises(errors.RangeError):
        aggregate_terms(vae, x, draws=5, generator=generator)
    laplace = rv.wrap(
        encode=lambda x: torch.distributions.Laplace(x.flatten(1)[:, :2], 1.0),
        decode=lambda z: Gaussian(torch.zeros(len(z), *SHAPE), torch.ones(len(z), *SHAPE)),
        latent=2,
        image_shape=SHAPE,
    )
    with pytest.raises(errors.UnsupportedError):
        aggregate_terms(laplace, x, draws=4, generator=generator)


def test_probe_reads_separable_codes_only(generator):
    y = torch.arange(600) % 3
    codes = torch.eye(3)[y] * 8 + torch.randn(600, 3, generator=generator)
    assert linear_probe(codes[:300], y[:300], codes[300:], y[300:]).double().mean() > 0.99
    noise = torch.randn(600, 3, generator=generator)
    guessed = linear_probe(noise[:300], y[:300], noise[300:], y[300:]).double().mean()
    assert abs(guessed - 1 / 3) < 4 * math.sqrt(2 / 9 / 300)
    with pytest.raises(errors.RangeError):
        linear_probe(codes, 0 * y, codes, y)
    with pytest.raises(errors.ShapeError):
        linear_probe(codes, y[:-1], codes, y)
