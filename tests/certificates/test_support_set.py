"""Support sets beside closed forms and dense grids, and the objective that trains for them."""

import itertools

import pytest
import torch
from scipy.stats import norm
from torch import nn

import robustvae as rv
from robustvae import errors, objectives
from robustvae.certificates import certify, support_set_error
from robustvae.certificates.methods import support_set
from robustvae.models import create
from robustvae.objectives.support_set import ends, worst_explanation

SHAPE = (1, 4, 4)


def linear(slope=0.5, gain=2.0, stddev=0.3, m=0.7):
    """One latent: the encoder reads the first pixel, the decoder writes to the last one."""
    vae = create(
        "vae",
        architecture="mlp",
        image_shape=SHAPE,
        latent=1,
        hidden=[2],
        likelihood="gaussian",
        stddev=stddev,
    ).double()
    with torch.no_grad():
        for layer in vae.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
        dense = [layer for layer in vae.modules() if isinstance(layer, nn.Linear)]
        dense[0].weight[0, 0], dense[0].bias[0] = slope, 10.0  # its rectifier is always open
        dense[1].weight[0, 0], dense[1].bias[0] = 1.0, -10.0
        dense[2].weight[0, 0], dense[2].bias[0] = 1.0, 10.0
        dense[3].weight[-1, 0], dense[3].bias[-1] = gain, -10.0 * gain
    return vae


@pytest.mark.parametrize("m", [0.3, 0.7])
def test_radius_matches_closed_form(m, generator):
    """|gain| (slope rho + q stddev) = r, of one linear latent without anything between."""
    vae, x = linear(), torch.rand(3, *SHAPE, generator=generator).double()
    r = 2.0
    lower = certify(vae, x, r, m, methods=["support_set"], generator=generator)
    exact = (r / 2.0 - 0.3 * norm.ppf((1 + m) / 2)) / 0.5
    # the search takes 98 % of what may be spent
    assert (lower.radius <= exact).all() and (lower.radius > 0.9 * exact).all()
    assert lower.kind == "deterministic" and set(lower.method) == {"support_set"}


def test_one_sided_quantile_is_caught(monkeypatch, generator):
    vae, x = linear(), torch.rand(1, *SHAPE, generator=generator).double()
    monkeypatch.setattr(support_set, "box_quantile", lambda m, d: float(norm.ppf(m ** (1 / d))))
    lower = certify(vae, x, 2.0, 0.7, methods=["support_set"], generator=generator)
    assert float(lower.radius) > (1.0 - 0.3 * norm.ppf(0.85)) / 0.5


def small(latent=2, **options):
    return create(
        "vae", architecture="mlp", image_shape=SHAPE, latent=latent, hidden=[8], **options
    ).double()


def on_a_grid(vae, center, width, steps=9):
    """Outputs at a grid of the box, its corners among them, (n, D)."""
    axes = [torch.linspace(-1, 1, steps, dtype=torch.float64)] * len(center)
    points = torch.tensor(list(itertools.product(*[axis.tolist() for axis in axes])))
    with torch.no_grad():
        return vae.decode(center + points.double() * width).mean.flatten(1)


@pytest.mark.parametrize(
    "likelihood", ["bernoulli", "gaussian", "continuous_bernoulli", "continuous_bernoulli_exact"]
)
def test_box_holds_a_dense_grid(likelihood, generator):
    vae = small(likelihood=likelihood)
    parts = vae.composition()
    center = torch.randn(2, generator=generator, dtype=torch.float64)
    for width in (0.05, 1.0):
        widths = torch.tensor([width, 2 * width], dtype=torch.float64)
        low, high = support_set.output_box(parts, center, widths)
        outputs = on_a_grid(vae, center, widths)
        assert (outputs >= low).all() and (outputs <= high).all()
        if width == 0.05:  # and not by much more
            assert ((high - low) < 3 * (outputs.amax(0) - outputs.amin(0)) + 1e-3).all()


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
def test_attack_at_radius_in_vain(displacement, generator):
    # two draws are further apart: a small spread leaves something of r
    vae, r = small(**({"stddev": 0.2} if displacement == "paired" else {})), 2.0
    with torch.no_grad():
        for layer in vae.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2)
    x = torch.rand(3, *SHAPE, generator=generator).double()
    lower = certify(
        vae, x, r, 0.6, displacement, methods=["support_set"], generator=rv.generator(0)
    )
    assert (lower.radius > 0).any(), lower.assumptions
    for row in (lower.radius > 0).nonzero()[:, 0].tolist():
        for _ in range(5):
            step = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
            y = x[row : row + 1] + 0.999 * lower.radius[row] * step / step.norm()
            with torch.no_grad():
                clean, moved = vae.encode(x[row : row + 1]), vae.encode(y)
                spread = clean.stddev if displacement == "centered" else moved.stddev
                noise = torch.randn(2, 4000, 2, generator=generator, dtype=torch.float64)
                other = clean.mean + (displacement == "paired") * clean.stddev * noise[1]
                gap = vae.decode(moved.mean + spread * noise[0]).mean - vae.decode(other).mean
            chance = (gap.flatten(1).norm(dim=1) <= r).double().mean()
            assert chance > 0.6 - 4 * 0.008


@pytest.mark.parametrize(("norm_of", "error"), [("linf", "linf"), ("l2", "l2")])
def test_certified_error_holds(norm_of, error, generator):
    vae, size = small(), 0.1
    x = torch.rand(2, *SHAPE, generator=generator).double()
    bound = support_set_error(vae, x, size, 0.5, norm=norm_of, error=error)
    for _ in range(20):
        step = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        lengths = step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        y = x + size * (step.sign() if norm_of == "linf" else step / lengths)
        with torch.no_grad():
            q = vae.encode(y)
            noise = torch.randn(2000, *q.mean.shape, generator=generator, dtype=torch.float64)
            outputs = vae.decode((q.mean + q.stddev * noise).flatten(0, 1)).mean
            gap = outputs.unflatten(0, (2000, 2)).sub(x).flatten(2)
        far = gap.norm(dim=2) if error == "l2" else gap.abs().amax(2)
        assert ((far <= bound).double().mean(0) > 0.5 - 4 * 0.012).all()


def test_nothing_is_said_of_hierarchies(generator):
    vae = rv.models.create("seatbelt", architecture="mlp", image_shape=SHAPE, widths=[2, 2])
    x = torch.rand(1, *SHAPE, generator=generator).to(vae.dtype)
    lower = certify(vae, x, 1.0, methods=["support_set"], generator=generator)
    assert lower.status == ("abstain",)
    with pytest.raises(errors.UnsupportedError):
        objectives.SupportSet()(vae, x, generator=generator)


@pytest.mark.parametrize("kind", ["mlp", "conv8"])
def test_worst_explanation_above_every_draw(kind, generator):
    options = {"hidden": [8], "image_shape": (1, 8, 8)} if kind == "mlp" else {}
    vae = create("vae", architecture=kind, latent=2, **options).double()
    x = torch.rand(2, 1, 8, 8, generator=generator).double()
    m, size = 0.8, 0.03
    worst = worst_explanation(vae.composition(), x, size, m)
    inside = torch.zeros(2, dtype=torch.float64)
    for _ in range(400):
        y = x + size * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)
        with torch.no_grad():
            q = vae.encode(y)
            z = q.mean + q.stddev * torch.randn(2, 2, generator=generator, dtype=torch.float64)
            inside += (-vae.decode(z).log_prob(x).flatten(1).sum(1) <= worst).double()
    assert (inside / 400 >= m - 4 * 0.02).all()
    # of no change and hardly any mass it is that of the mean itself
    nothing = worst_explanation(vae.composition(), x, 0.0, 1e-12)
    exact = -vae.decode(vae.encode(x).mean).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(nothing, exact, rtol=1e-4)


def test_intervals_hold_and_refuse(generator):
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.Softplus(),
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).double()
    x = torch.rand(5, *SHAPE, generator=generator).double()
    low, high = ends(layers, x - 0.1, x + 0.1)
    for _ in range(50):
        y = x + 0.1 * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)
        output = layers(y)
        assert (output >= low - 1e-12).all() and (output <= high + 1e-12).all()
    for layer in (nn.GELU(), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 3, padding_mode="reflect")):
        with pytest.raises(errors.UnsupportedError):
            ends(layer.double(), x, x)


def test_training_shrinks_certified_error():
    """A hundred steps under the objective certify less error than a hundred without it."""
    x = rv.data.load("digits", split="train").x[:64].double()
    bounds = {}
    for weight in (0.0, 0.5):
        vae = create(
            "vae", architecture="mlp", latent=4, hidden=[32], image_shape=(1, 8, 8), seed=0
        )
        vae, g = vae.double(), rv.generator(0)
        objective = objectives.SupportSet(0.02, weight=weight, base=objectives.ELBO(beta=0.2))
        adam = torch.optim.Adam(vae.parameters(), 5e-3)
        for _ in range(100):
            adam.zero_grad()
            objective(vae, x, generator=g).mean().backward()
            adam.step()
        bounds[weight] = float(support_set_error(vae, x[:8], 0.02, error="l2").mean())
    assert bounds[0.5] < 0.9 * bounds[0.0]
