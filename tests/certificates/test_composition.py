"""Strangers' models: bounded as they run, or refused by name."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as f
from torch.testing import assert_close

import robustvae as rv
from robustvae import models
from robustvae.certificates import lipschitz_constants
from robustvae.certificates.networks import composition_of, output_of
from robustvae.models.vae import likelihood_of

SHAPE = (1, 4, 4)


class Mine(rv.VAE):
    """Two linear layers, as a user would write them outside the library."""

    latent, image_shape = 2, SHAPE

    def __init__(self, spread="constant", output="bernoulli"):
        super().__init__()
        self.spread, self.output = spread, output
        self.inner, self.outer = nn.Linear(16, 4 if spread != "constant" else 2), nn.Linear(2, 16)

    def encode(self, x):
        self.check(x)
        h = self.inner(x.flatten(1))
        if self.spread == "constant":
            return models.Gaussian(h, torch.full_like(h, 0.1))
        mean, other = h.chunk(2, 1)
        if self.spread == "exp":
            return models.Gaussian(mean, torch.exp(0.5 * other) * 1.0)
        if self.spread == "clamped":
            return models.Gaussian(mean, other.clamp(-6, 2).mul(0.5).exp() + 0.05)
        return models.Gaussian(mean, f.softplus(other) + 0.01)

    def decode(self, z):
        self.check_latent(z, z.shape[0])
        logits = self.outer(z).view(-1, *SHAPE)
        if self.output == "bernoulli":
            return models.Bernoulli(logits)
        return models.Gaussian(logits.tanh(), torch.full_like(logits, 0.3))


def mine(*arguments, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Mine(*arguments).float().eval()


class Plain(nn.Module):
    """A stranger's module of plain layers, of no class of ours."""

    def __init__(self, factor=0.1):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(16, 8), nn.Linear(8, 2), nn.Linear(8, 2)
        self.fc3, self.fc4 = nn.Linear(2, 8), nn.Linear(8, 16)
        with torch.no_grad():
            self.fc22.weight.mul_(factor)

    def encode(self, x):
        h = f.relu(self.fc1(x.view(-1, 16)))
        return self.fc21(h), self.fc22(h)

    def decode(self, z):
        return torch.sigmoid(self.fc4(f.relu(self.fc3(z))))


def wrapped(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return rv.wrap(Plain().float().eval(), image_shape=SHAPE, **options)


MODELS = {
    "constant": mine,
    "exp": lambda: mine("exp"),
    "clamped": lambda: mine("clamped", "tanh"),
    "softplus": lambda: mine("softplus", "tanh"),
    "wrapped": wrapped,
    "wrapped, probabilities": lambda: wrapped(likelihood="bernoulli"),
}


def certify(vae, x, methods=None, displacement="full", r=1.5, **options):
    return rv.certify(
        vae,
        x,
        r=r,
        displacement=displacement,
        methods=methods,
        generator=rv.generator(0),
        **options,
    )


@pytest.mark.parametrize("name", MODELS)
def test_composition_computes_what_runs(name, generator):
    vae = copy.deepcopy(MODELS[name]()).double()
    parts = composition_of(vae)
    x = torch.rand(5, *SHAPE, generator=generator, dtype=torch.float64)
    posterior = vae.encode(x)
    assert_close(output_of(parts.mean, x), posterior.mean)
    head = posterior.mean if parts.spread_network is None else output_of(parts.spread_network, x)
    assert_close(parts.spread.stddev(head), posterior.stddev)
    z = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    means = likelihood_of(output_of(parts.decoder, z), parts.likelihood, parts.scale).mean
    assert_close(means.reshape(5, *SHAPE), vae.decode(z).mean, atol=2e-6, rtol=0)
    assert parts.spread.is_constant == (name == "constant")
    assert (parts.likelihood == "bernoulli") == (name in ("constant", "exp") or "wrap" in name)


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
@pytest.mark.parametrize("name", MODELS)
def test_strangers_get_certificates_that_hold(name, displacement, generator):
    """By Lipschitz constants, linear bounds and first order; none is refuted at 0.999 of it."""
    vae = MODELS[name]()
    x = torch.rand(2, *SHAPE, generator=generator).float()
    r = 6.0 if name in ("clamped", "softplus") else 3.0  # tanh reaches twice as far
    asked = (None, ["neyman_pearson"], ["first_order"])
    lowers = [certify(vae, x, methods, displacement, r, draws=200) for methods in asked]
    assert all((lower.radius > 0).any() for lower in lowers), [one.assumptions for one in lowers]
    assert [lower.kind for lower in lowers] == ["deterministic", "probabilistic", "first_order"]
    for lower in lowers[:2]:
        step = torch.randn(8, 2, *SHAPE, generator=generator).float()
        sizes = step.flatten(2).norm(dim=2)[:, :, None, None, None]
        step = 0.999 * lower.radius.float()[:, None, None, None] * step / sizes
        noises = torch.randn(2, 400, 2, 2, generator=generator).float()
        with torch.no_grad():
            clean = vae.encode(x)
            center = vae.decode(clean.mean).mean.flatten(1)
            for moved in step:
                q = vae.encode(x + moved)
                stddev = clean.stddev if displacement == "centered" else q.stddev
                ends = [
                    vae.decode(mean + spread * noise[:, i]).mean.flatten(1)
                    for noise, side in zip(noises, (q.mean, clean.mean), strict=True)
                    for i, (mean, spread) in enumerate(
                        zip(side, (stddev, clean.stddev)[side is clean.mean], strict=True)
                    )
                ]
                others = ends[2:] if displacement == "paired" else list(center)
                inside = torch.stack(
                    [(end - o).norm(dim=1) <= r for end, o in zip(ends[:2], others, strict=True)]
                )
                assert (inside.double().mean(1) >= 0.5 - 0.1).all()


def test_bigger_weights_shrink_the_radius(generator):
    """The certificate follows what runs: a call that multiplies the image by 10."""
    x = torch.rand(2, *SHAPE, generator=generator).float()
    loud = type("Loud", (Mine,), {"encode": lambda vae, x: Mine.encode(vae, 10 * x)})
    for methods in (["noncentral"], ["neyman_pearson"]):
        vae = mine()
        tame = certify(vae, x, methods, r=3.0).radius
        vae.__class__ = loud
        shrunk = certify(vae, x, methods, r=3.0).radius
        # the clean probability may differ a little, the slope by a factor of 10
        assert (tame > 0).all() and (shrunk <= 0.11 * tame).all()
    assert lipschitz_constants(vae).b == pytest.approx(10 * lipschitz_constants(mine()).b)


def branching(vae, x):
    h = vae.inner(x.flatten(1))
    h = h if h.abs().max() < 30 else 100 * h
    return models.Gaussian(h, torch.full_like(h, 0.1))


def counted(vae, x):
    vae.calls = getattr(vae, "calls", 0) + 1
    h = vae.inner(x.flatten(1)) * (1.0 if vae.calls < 9 else 100.0)
    return models.Gaussian(h, torch.full_like(h, 0.1))


def typed(vae, x):
    h = vae.inner(x.flatten(1)) * (1.0 if isinstance(x, torch.fx.Proxy) else 3.0)
    return models.Gaussian(h, torch.full_like(h, 0.1))


def mixed(vae, x):
    h = vae.inner(x.flatten(1) - x.mean(0).sum())
    return models.Gaussian(h, torch.full_like(h, 0.1))


def spread_apart(vae, x):
    h = vae.inner(x.flatten(1))
    return models.Gaussian(h, torch.full_like(h, 0.1) * h.abs().clamp(max=1e-3).sign())


HOSTILE = {
    "branch": {"encode": branching},
    "state": {"encode": counted},
    "type": {"encode": typed},
    "batch": {"encode": mixed},
    "spread": {"encode": spread_apart},
    "square": {"decode": lambda vae, z: models.Bernoulli((vae.outer(z) ** 3).view(-1, *SHAPE))},
    "rounding": {"decode": lambda vae, z: models.Bernoulli(vae.outer(z).round().view(-1, *SHAPE))},
    "point": {"encode": lambda vae, x: models.PointMass(vae.inner(x.flatten(1)))},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_calls_are_refused(name, generator):
    vae = mine()
    vae.__class__ = type("Hostile", (Mine,), HOSTILE[name])
    x = torch.rand(2, *SHAPE, generator=generator).float()
    lower = certify(vae, x, ["noncentral", "trace_markov"], r=3.0)
    assert (lower.radius == 0).all() and any("not covered" in text for text in lower.assumptions)
    if "encode" in HOSTILE[name]:
        assert (certify(vae, x, ["neyman_pearson"], r=3.0, draws=100).radius == 0).all()


def test_statements_of_strangers_are_not_believed(generator):
    """A class that says it is made of tame networks is bounded by what its calls do."""
    tame = mine()
    loud = {
        "encode": lambda vae, x: Mine.encode(vae, 10 * x),
        "composition": lambda vae: composition_of(tame),
        "paths": lambda vae: rv.VAE.paths(tame),
    }
    vae = mine()
    vae.__class__ = type("Liar", (Mine,), loud)
    assert lipschitz_constants(vae).b == pytest.approx(10 * lipschitz_constants(tame).b)


@pytest.mark.parametrize("touch", ["encode", "check", "hook", "class"])
def test_touched_stranger_is_refused(touch, monkeypatch, generator):
    vae, x = mine(), torch.rand(1, *SHAPE, generator=generator).float()
    if touch == "encode":
        vae.encode = lambda x: Mine.encode(vae, 10 * x)
    elif touch == "check":
        vae.check = lambda x: None
    elif touch == "hook":
        vae.inner.register_forward_hook(lambda *_: None)
    else:
        vae = models.create("vae", architecture="mlp", image_shape=SHAPE, latent=2, hidden=[4])
        right = type(vae).encode
        monkeypatch.setattr(type(vae), "encode", lambda vae, x: right(vae, 10 * x))
        vae = vae.float()
    for methods in (["noncentral"], ["neyman_pearson"]):
        assert (certify(vae, x, methods, r=3.0, draws=100).radius == 0).all()


def test_half_precision_is_refused(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = rv.wrap(Plain().bfloat16().eval(), image_shape=SHAPE)
    x = torch.rand(1, *SHAPE, generator=generator).float()
    for methods in (["noncentral"], ["neyman_pearson"]):
        lower = certify(vae, x, methods, r=3.0, draws=100)
        assert (lower.radius == 0).all() and any("bfloat16" in text for text in lower.assumptions)
