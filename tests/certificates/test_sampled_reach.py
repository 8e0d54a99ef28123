"""Sampled reach: closed form, soundness by trials, and where it does not apply."""

import pytest
import torch

import robustvae as rv
from robustvae.certificates import certify
from robustvae.certificates.methods import sampled_reach
from robustvae.metrics import clopper_pearson
from robustvae.models import create

METHODS = ["sampled_reach:draws=64,steps=30"]


def linear(**options):
    settings = {"encoder_lipschitz": 1.5, "decoder_lipschitz": 2.0, "stddev": 0.1}
    vae = create(
        "lipschitz-vae",
        image_shape=(1, 4, 4),
        latent=4,
        hidden=[],
        likelihood="gaussian",
        **{**settings, **options},
    )
    return vae.double()


@pytest.mark.parametrize("displacement", ["centered", "paired"])
def test_linear_models_have_quantile_of_gap(displacement, generator):
    """With an isometry t = (r - ||gap||) / a exactly, and ||gap|| has a chi distribution."""
    from scipy.stats import chi

    x, r, m = torch.rand(3, 1, 4, 4, generator=generator), 1.2, 0.6
    ask = {"methods": METHODS, "draws": 4000, "generator": generator}
    lower = certify(linear(), x, r, m, displacement, **ask)
    spread = 2 * 0.1 * (2**0.5 if displacement == "paired" else 1.0)
    exact = (r - spread * chi.ppf(m, 4)) / 2.0 / 1.5
    assert (lower.radius <= exact).all() and (lower.radius > 0.93 * exact).all()
    assert (lower.simultaneous <= lower.radius).all() and lower.kind == "probabilistic"


def test_few_pairs_abstain(generator):
    x = torch.rand(1, 1, 4, 4, generator=generator)
    lower = certify(linear(), x, 1.2, 0.5, "paired", methods=METHODS, draws=5, generator=generator)
    assert lower.status == ("abstain",)


def test_paired_gains_from_saturation(generator, monkeypatch):
    """The bundled model: longer than by r / a alone, and no ascent inside breaks it."""
    vae = rv.load("digits-lipschitz-vae").double()
    x = rv.data.load("digits", split="test").x[:3].double()
    r = 1.0
    lower = certify(vae, x, r, 0.5, "paired", methods=METHODS, generator=rv.generator(0))
    with monkeypatch.context() as patch:
        tight = lambda decoder, z, r, steps: torch.zeros(len(z))  # noqa: E731
        patch.setattr(sampled_reach, "tangent_reach", tight)
        free = lambda logits, r: 4 * r * 0  # noqa: E731
        patch.setattr(sampled_reach.bounds, "envelope_reach", free)
        plain = certify(vae, x, r, 0.5, "paired", methods=METHODS, generator=rv.generator(0))
    assert (lower.radius >= plain.radius * (1 - 1e-9)).all() and (plain.radius > 0).all()
    assert lower.radius.sum() > plain.radius.sum()
    change = torch.randn(x.shape, generator=generator)
    size = 0.999 * lower.radius.view(-1, 1, 1, 1)
    clean = vae.decode(vae.encode(x).mean).mean.detach()
    for _ in range(30):
        change = (size * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).requires_grad_()
        gap = (vae.decode(vae.encode(x + change).mean).mean - clean).square().sum()
        (grad,) = torch.autograd.grad(gap, change)
        change = (change + size * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).detach()
    change = size * change / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        ends = [
            vae.decode(rv.draw(vae.encode(y), (2000,), generator=generator).flatten(0, 1)).mean
            for y in (x + change, x)
        ]
    gap = (ends[0] - ends[1]).flatten(1).norm(dim=1).view(2000, 3)
    high = clopper_pearson((gap <= r).sum(0), 2000, 1 - 1e-8, sides=1)[1]
    assert (torch.as_tensor(high) > 0.5).all()


def test_order_statistic_decides(generator, monkeypatch):
    """Taking the largest reach instead of the right one claims more than there is."""
    from scipy.stats import chi

    monkeypatch.setattr(sampled_reach, "lower_index", lambda n, q, a: n)
    x = torch.rand(1, 1, 4, 4, generator=generator)
    ask = {"methods": METHODS, "draws": 500, "generator": generator}
    lower = certify(linear(), x, 1.2, 0.6, "centered", **ask)
    assert float(lower.radius) > (1.2 - 0.2 * chi.ppf(0.6, 4)) / 3.0


def test_moving_spreads_abstain_by_name(generator):
    x = torch.rand(1, 1, 4, 4, generator=generator)
    vae = linear(stddev=None)
    lower = certify(vae, x, 1.2, 0.5, "full", methods=METHODS, generator=generator)
    assert lower.status == ("abstain",) and "not the same for every input" in lower.assumptions[0]
