"""The slow references of rivals: sound, and as sharp as their rules."""

import pytest
import torch
from scipy.stats import norm
from torch import nn

import robustvae as rv
from experiments.bench.certificate_peers import FACTOR, GAP, center_smoothing, crown


def test_crown_holds_every_point(generator):
    layers = [
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.ReLU(),
        nn.Linear(8, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ]
    net = nn.Sequential(*layers).double().requires_grad_(False)
    x = torch.rand(4, 1, 4, 4, generator=generator).double()
    low, high = crown(layers, x, 0.3)
    for _ in range(300):
        step = torch.randn(x.shape, generator=generator).double()
        step = 0.3 * step / step.flatten(1).norm(dim=1)[:, None, None, None]
        moved = net(x + step) - net(x)
        assert (low <= moved).all() and (moved <= high).all()
    assert (low <= 0).all() and (high >= 0).all() and (low < 0).any()  # a ReLU may be off


def test_crown_is_exact_for_one_layer(generator):
    layer = nn.Linear(16, 3).double().requires_grad_(False)
    x = torch.rand(2, 1, 4, 4, generator=generator).double()
    low, high = crown([nn.Flatten(), layer], x, 0.3)
    exact = 0.3 * layer.weight.norm(dim=1).expand(2, 3)
    torch.testing.assert_close(high, exact)
    torch.testing.assert_close(low, -exact)


def test_center_smoothing_keeps_its_rule():
    """One pixel passed on: R is a quantile of |N(0, s)|, a change is what keeps 3 R within r."""
    vae = rv.wrap(
        encode=lambda x: rv.models.PointMass(x.flatten(1)),
        decode=lambda z: rv.models.PointMass(z.view(-1, 1, 1, 1)),
        latent=1,
        image_shape=(1, 1, 1),
    )
    stddev, r = 0.2, 1.2
    victim = rv.Victim(vae, rv.InputNoise(stddev))
    x = torch.full((1, 1, 1, 1), 0.5)
    size = center_smoothing(victim, x, r, 20_000, rv.generator(0))
    level = 2 * norm.cdf(r / FACTOR / stddev) - 1
    exact = stddev * (norm.ppf(level) - norm.ppf(0.5 + GAP))
    assert 0.85 * exact < size <= exact * 1.02
    assert center_smoothing(victim, x, r, 200, rv.generator(0)) == pytest.approx(0)
