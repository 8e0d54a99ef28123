"""Coordinates of the code with no spread, or nearly none: certified where that is true."""

import dataclasses

import pytest
import torch
from scipy.stats import norm
from torch.testing import assert_close

import robustvae as rv
from robustvae import bounds, models
from robustvae.certificates import certification, certify

SHAPE = (1, 2, 2)
R, M = 0.5, 0.5


class Coordinates(rv.VAE):
    """Codes are pixels and reconstructions are codes; spreads are what a layer makes of pixels."""

    image_shape = SHAPE

    def __init__(self, spread, latent=4):
        super().__init__()
        self.latent, self.spread = latent, spread
        self.mean, self.wide = torch.nn.Linear(4, latent), torch.nn.Linear(4, latent)
        self.out = torch.nn.Linear(latent, 4)
        with torch.no_grad():
            for layer in (self.mean, self.out):
                layer.weight.copy_(torch.eye(*layer.weight.shape))
                layer.bias.zero_()
            self.wide.weight.zero_()
            self.wide.bias.zero_()

    def encode(self, x):
        flat = x.flatten(1)
        wide = self.wide(flat)
        return models.Gaussian(
            self.mean(flat), wide.relu() if self.spread == "relu" else wide.exp()
        )

    def decode(self, z):
        mean = self.out(z).view(-1, *SHAPE)
        return models.Gaussian(mean, torch.ones_like(mean))


def with_spreads(spreads):
    """The same spreads at every input, as far as a layer without slope gives them."""
    vae = Coordinates("relu", len(spreads)).double().requires_grad_(False)
    vae.wide.bias.copy_(torch.tensor(spreads))
    return vae


def chance(vae, x, step, displacement, count=20_000):
    """P(||Delta|| <= R) after a change."""
    g, q = rv.generator(7), vae.encode(x + step)
    outputs = [
        vae.decode(q.mean + q.stddev * torch.randn(count, vae.latent, generator=g)).mean.flatten(1)
        for _ in range(2)
    ]
    clean = vae.encode(x)
    center = vae.decode(clean.mean).mean.flatten(1)
    if displacement == "paired":
        wide = clean.stddev * torch.randn(count, vae.latent, generator=g)
        center = vae.decode(clean.mean + wide).mean.flatten(1)
    return float(((outputs[0] - center).norm(dim=1) <= R).double().mean())


@pytest.mark.parametrize("spreads", [[0.1, 0.1, 0.0, 0.0], [0.1, 0.02, 1e-12, 1e-310], [0.0] * 4])
@pytest.mark.parametrize(
    ("method", "displacement"),
    [
        ("noncentral", "full"),
        ("trace_markov", "full"),
        ("generalized", "centered"),
        ("support_set", "centered"),
        ("barrett", "paired"),
        ("noncentral", "paired"),
    ],
)
def test_points_are_certified_and_hold(method, displacement, spreads):
    vae, x = with_spreads(spreads), torch.full((1, *SHAPE), 0.5)
    ask = {"methods": [method], "generator": rv.generator(0)}
    lower = certify(vae, x, R, M, displacement, **ask)
    radius = float(lower.radius[0])
    assert 0 < radius <= R, lower.assumptions
    for pixel in range(4):
        step = torch.zeros(4).index_fill(0, torch.tensor(pixel), 0.999 * radius).view(x.shape)
        assert chance(vae, x, step, displacement) >= M - 0.015, pixel


@pytest.mark.parametrize(("method", "share"), [("noncentral", 1.0), ("generalized", 0.5)])
def test_points_alone_go_to_r(method, share):
    """Without any spread the code moves by the change and no further: the radius is r.

    Half of it where each of four coordinates is bounded by itself.
    """
    vae, x = with_spreads([0.0] * 4), torch.full((2, *SHAPE), 0.5)
    lower = certify(vae, x, R, 0.9, "centered", methods=[method], generator=rv.generator(0))
    most = share * R
    assert bool((lower.radius <= most).all()) and bool((lower.radius > 0.98 * most).all())


def test_points_give_neyman_pearson_nothing():
    """Of an input with a point it says why not, and of the others as much as without it."""
    vae, x = with_spreads([0.1] * 4), torch.full((3, *SHAPE), 0.5)
    vae.wide.weight[2, 0] = 1.0
    vae.wide.bias[2] = -0.5
    x[0, 0, 0, 0] = 1.0
    ask = {"methods": ["neyman_pearson"], "generator": rv.generator(0), "draws": 200}
    lower = certify(vae, x, R, M, "centered", rows=[0, 1, 2], **ask)
    assert (lower.radius > 0).tolist() == [True, False, False]
    assert any("2 of 3 inputs" in line and "no probability" in line for line in lower.assumptions)
    ask["generator"] = rv.generator(0)
    alone = certify(vae, x[:1], R, M, "centered", rows=[0], **ask)
    assert torch.equal(alone.radius, lower.radius[:1])
    none = certify(vae, x[1:], R, M, "centered", **ask)
    assert not none.radius.any() and "no probability carries over" in none.assumptions[0]


@pytest.mark.parametrize("small", [0.0, 1e-310, 1e-30, 1e-5, 1e-4])
def test_generalized_of_points_is_exact(small):
    """One coordinate of spread 1, one next to a point: a normal's probability."""
    shift, reach = 0.6, 1.0
    found = bounds.generalized_probability(
        reach, torch.tensor([[0.0, shift]]), torch.tensor([[0.5, small]])
    )
    exact = 2 * norm.cdf((reach**2 - shift**2) ** 0.5 / 0.5) - 1
    assert exact - 2e-3 <= float(found[0]) <= exact + (1e-3 if small >= 1e-5 else 0)
    assert (
        float(bounds.generalized_probability(reach, torch.tensor([[1.01]]), torch.zeros(1, 1))) == 0
    )


@pytest.mark.parametrize("ratio", [1e-2, 1e-3, 1e-6, 1e-12, 0.0])
def test_noncentral_of_small_spreads(ratio):
    """Never above what a normal gives, and no less than a thousandth below; quickly."""
    inside = bounds.noncentral_probability(1.0, 1 - 2 * max(ratio, 1e-3), ratio, 1)
    exact = norm.cdf(2 * max(ratio, 1e-3) / ratio) if ratio else 1.0
    assert norm.cdf(2) - 1e-3 <= float(inside) <= exact + 1e-9
    assert float(bounds.noncentral_probability(1.0, 1.1, ratio, 1)) == 0


@pytest.mark.parametrize("start", [-400.0, -700.0, -730.0, -800.0])
@pytest.mark.parametrize("displacement", ["full", "paired"])
def test_tiny_spreads_grow_as_bounded(start, displacement):
    """A spread of e^-700 that grows by e^2000 a unit: a bound that stopped at e^300 was false."""
    vae, x = Coordinates("exp").double().requires_grad_(False), torch.full((1, *SHAPE), 0.5)
    vae.mean.weight.mul_(1e-3)
    vae.wide.weight.fill_(500.0)  # by 1000 a unit of the step below
    vae.wide.bias.fill_(start - 1000.0)
    lower = certify(vae, x, R, M, displacement, generator=rv.generator(0))
    radius = float(lower.radius[0])
    assert radius > 0
    # its spread is exact: no draw can be within r where it is far above it
    grown = float(vae.encode(x + 0.999 * radius / 2).stddev.max())
    assert grown < 3 * R


def test_neyman_pearson_holds_for_all():
    """Ten radii together fail as seldom as asked; those of single inputs do not."""

    class Half(Coordinates):
        image_shape = (1, 1, 1)

        def __init__(self):
            super().__init__("relu", 1)
            self.mean, self.wide = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
            with torch.no_grad():
                for layer, weight, bias in ((self.mean, 1.0, 0.0), (self.wide, 0.0, 0.5)):
                    layer.weight.fill_(weight)
                    layer.bias.fill_(bias)

        def decode(self, z):
            mean = z.clamp_min(0).view(-1, 1, 1, 1)
            return models.Gaussian(mean, torch.ones_like(mean))

    count, m, r, failure = 300, 0.4, 0.6, 0.2
    asked = {
        **{"r": r, "m": m, "displacement": "centered", "question": None, "center": None},
        **{"norm": "l2", "methods": ["neyman_pearson"], "confidence": 1 - failure, "draws": 200},
        **{"box": False, "rows": range(count), "generator": rv.generator(0)},
    }
    x = torch.full((count, 1, 1, 1), 0.5)
    inquiry = certification.inquire(Half().double().requires_grad_(False), x, asked)
    task = dataclasses.replace(inquiry.task, together=10)
    lower = certification.answer(task, inquiry.members, 1 - failure)
    margin = r - 0.5 * norm.ppf(m)
    single, together = (
        float((radii > margin).view(-1, 10).any(1).double().mean())
        for radii in (lower.radius, lower.simultaneous)
    )
    assert together <= failure + 4 * (failure * (1 - failure) / (count / 10)) ** 0.5 < single
    assert bool((lower.simultaneous <= lower.radius).all())
    assert float((lower.simultaneous / lower.radius).median()) > 0.6


def test_all_methods_hold_together():
    """The larger of two sampled methods' radii for all inputs stands, with half the rest each."""
    vae, x = rv.load("digits-lipschitz-vae"), rv.data.load("digits", split="test").x[:2]
    ask = {"m": M, "displacement": "centered", "draws": 100, "confidence": 0.99}
    names = ["neyman_pearson", "sampled_reach"]
    both = certify(vae, x, 1.0, methods=names, generator=rv.generator(0), **ask)
    ask["confidence"] = 0.995
    one, other = (
        certify(vae, x, 1.0, methods=[name], generator=rv.generator(0), **ask) for name in names
    )
    assert_close(both.simultaneous, torch.maximum(one.simultaneous, other.simultaneous))
    assert bool((both.simultaneous <= both.radius).all() and (both.simultaneous > 0).all())
    assert bool((one.simultaneous < one.radius).all())
