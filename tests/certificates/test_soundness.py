"""Trials inside certified radii: none refutes a certificate, and broken bounds are found out."""

import dataclasses

import pytest
import torch

import robustvae as rv
from robustvae import bounds
from robustvae.certificates import tangent
from robustvae.certificates.methods import lipschitz
from robustvae.metrics import clopper_pearson
from robustvae.models import create
from robustvae.robustness import clean_quantile
from robustvae.testing import judge, soundness, trials

SHAPE = (1, 4, 4)


def digits(count):
    return rv.data.load("digits", split="test").x[:count].float()


def small(**options):
    settings = {"latent": 3, "hidden": [8], "encoder_lipschitz": 2.0, "decoder_lipschitz": 8.0}
    return create("lipschitz-vae", image_shape=SHAPE, **{**settings, "stddev": 0.1, **options})


def near_linear():
    """About gray all constants are nearly reached, the sigmoid's slope among them."""
    vae = small(hidden=[], latent=4, stddev=0.01, encoder_lipschitz=0.3, decoder_lipschitz=4.0)
    with torch.no_grad():
        vae.mean_net[1].bias.zero_()
        vae.decoder[0].bias.zero_()
    return vae.double()


def linear():
    """Orthogonal maps and no sigmoid: every certificate is the exact margin."""
    vae = small(hidden=[], latent=4, stddev=0.02, likelihood="gaussian", decoder_lipschitz=2.0)
    return vae.double()


def asked(r, displacement, m=0.5):
    return rv.Question(r=r, m=m, displacement=displacement, box=False)


KINDS = {
    "fixed sigma": small,
    "learned sigma": lambda: small(stddev=None, encoder_lipschitz=0.2, decoder_lipschitz=1.0),
    "clipped sigma": lambda: small(
        stddev=None, stddev_norm=0.8, encoder_lipschitz=0.2, decoder_lipschitz=1.0
    ),
    "exact mean": lambda: small(likelihood="continuous_bernoulli_exact"),
    "maxmin": lambda: small(activation="maxmin", hidden=[16, 8]),
    "linear": linear,
}


@pytest.mark.slow
@pytest.mark.parametrize("displacement", ["centered", "paired", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_violation_of_each_model(kind, displacement, generator):
    x = torch.rand(4, *SHAPE, generator=generator).double()
    found = trials(
        KINDS[kind]().double(), x, asked(0.6, displacement), count=600, generator=generator
    )
    assert found.done >= 600 and found.violations == 0
    assert 0.3 * found.done < found.adversarial < found.done and 0 < found.box < found.done


@pytest.mark.parametrize("displacement", ["centered", "paired"])
def test_no_violation_of_the_bundled_model(displacement, generator):
    vae, x = rv.load("digits-lipschitz-vae"), digits(20)
    found = trials(vae, x, asked(1.0, displacement), count=2_000, generator=generator)
    assert found.done >= 2_000 and found.violations == 0 and found.abstained == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-vae", "digits-lipschitz-vae"])
def test_no_violation_of_neyman_pearson(name, generator):
    found = trials(
        rv.load(name),
        digits(50),
        asked(1.0, "centered"),
        count=20_000,
        generator=generator,
        methods=["neyman_pearson"],
    )
    assert found.done >= 20_000 and found.violations == 0


@pytest.mark.slow
@pytest.mark.parametrize("displacement", ["centered", "paired", "full"])
@pytest.mark.parametrize("kind", ["dlgm", "seatbelt"])
def test_no_violation_of_hierarchies(kind, displacement, generator):
    vae = create(kind, widths=[3, 2], image_shape=SHAPE, hidden=[8], between=[6])
    with torch.no_grad():
        vae.log_var_head.bias.fill_(-4.0)
        vae.up[0].log_var_head.bias.fill_(-4.0)
    x = torch.rand(4, *SHAPE, generator=generator)
    rest = clean_quantile(rv.Victim(vae), x, 0.5, displacement, generator=generator, draws=400)
    r = 2 * float(rest.value.median())
    ask = {"count": 600, "generator": generator, "methods": ["neyman_pearson"]}
    found = trials(vae, x, asked(r, displacement), **ask)
    assert found.done >= 600 and found.violations == 0 and found.inputs >= 4


def constants(monkeypatch, **factors):
    true_constants = lipschitz.constants_of

    def wrong(*arguments):
        right = true_constants(*arguments)
        return dataclasses.replace(right, **{k: getattr(right, k) * f for k, f in factors.items()})

    monkeypatch.setattr(lipschitz, "constants_of", wrong)


def one_variance(monkeypatch):
    right = lipschitz._moved_stddev
    monkeypatch.setattr(
        lipschitz, "_moved_stddev", lambda stddev, c, displacement: right(stddev, c, "centered")
    )


def short_way(monkeypatch):
    right = tangent._followed
    monkeypatch.setattr(tangent, "_followed", lambda *given: 0.5 * right(*given))


def free_logits(monkeypatch):
    right = bounds.envelope_reach
    monkeypatch.setattr(bounds, "envelope_reach", lambda logits, r: right(logits, 1.1 * r))


LATENT, TANGENT, ENVELOPE = ["noncentral"], ["tangent"], ["envelope"]
BROKEN = {
    "the sigmoid's slope 1/5": (near_linear, LATENT, 0.12, 0.5, constants, {"a": 0.8}),
    "the decoder without its scale": (near_linear, LATENT, 0.12, 0.5, constants, {"a": 0.5}),
    "the encoder's constant rounded down": (linear, LATENT, 0.6, 0.5, constants, {"b": 0.96}),
    "a missing 2 in the paired variance": (linear, LATENT, 0.6, 0.9, one_variance, {}),
    "the tangent's way too short": (near_linear, TANGENT, 0.12, 0.5, short_way, {}),
    "the envelope of a larger r": (near_linear, ENVELOPE, 0.12, 0.5, free_logits, {}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_bounds_caught_by_same_trials(name, generator, monkeypatch):
    make, methods, r, m, break_, how = BROKEN[name]
    displacement = "paired" if "paired" in name else "centered"
    vae = make()
    x = torch.full((3, *SHAPE), 1e-3).double()
    ask = {"count": 900, "generator": generator, "methods": methods}
    right = trials(vae, x, asked(r, displacement, m), **ask)
    assert right.done >= 900 and right.violations == 0
    break_(monkeypatch, **how)
    broken = trials(vae, x, asked(r, displacement, m), **ask)
    assert broken.inputs > 0 and broken.violations > 0


def test_trial_decided_by_true_probability(generator):
    """Drawn without attack, ||Delta|| has a known law: r on either side of its median decides."""
    vae, x = linear(), torch.rand(40, *SHAPE, generator=generator).double()
    size = 2.0 * 0.02 * torch.randn(200_000, 4, generator=generator).norm(dim=1)
    for share, robust in ((0.4, False), (0.6, True)):
        r = float(size.quantile(share))
        violated, undecided, draws = judge(vae, x, x, asked(r, "centered"), generator=generator)
        assert (violated, undecided) == ((0, 0) if robust else (40, 0))
        assert 40 * soundness.LOOKS[0] <= draws <= 40 * soundness.LOOKS[-1]


def test_the_first_look_can_decide():
    low, _ = clopper_pearson(soundness.LOOKS[0], soundness.LOOKS[0], 1 - soundness.HELD, sides=1)
    assert low > 0.5
