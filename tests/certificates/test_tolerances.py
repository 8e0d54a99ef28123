"""Certified radii along r: as by one question at a time, and sound."""

import pytest
import torch
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.certificates import certified_radii
from robustvae.certificates.methods import lipschitz
from robustvae.certificates.methods.base import unchanged_models
from robustvae.certificates.tolerances import QUICK

LEVELS = (0.5, 0.75, 1.5, 2.0)


@pytest.mark.parametrize("displacement", ["centered", "full", "paired"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radii_match_single_questions(displacement, norm):
    vae = rv.load("digits-lipschitz-vae")
    x = rv.data.load("digits", split="test").x[:3]
    question = rv.Question(r=1.0, displacement=displacement, norm=norm, box=False)
    band = certified_radii(vae, x, question, LEVELS, generator=rv.generator(0))
    assert band.radius.shape == (3, 4) and band.kind == "deterministic" and band.confidence == 1
    for k, r in enumerate(LEVELS):
        one = rv.Question(r=r, displacement=displacement, norm=norm, box=False)
        lower = rv.certify(vae, x, question=one, methods=QUICK, generator=rv.generator(0))
        assert_close(band.radius[:, k], lower.radius, rtol=1e-9, atol=0)
    assert (band.radius.diff(dim=1) > 0).all()


def test_weights_are_read_once(monkeypatch):
    """Whoever promises that a model stays as it is pays for its constants once."""
    vae = rv.load("digits-lipschitz-vae")
    x = rv.data.load("digits", split="test").x[:2]
    question = rv.Question(r=1.0, displacement="centered", box=False)
    counts = []
    original = lipschitz.constants_of
    monkeypatch.setattr(
        lipschitz, "constants_of", lambda *args: counts.append(1) or original(*args)
    )

    def radii():
        band = certified_radii(vae, x, question, LEVELS, generator=rv.generator(0))
        return band.radius

    once = radii()
    with unchanged_models({}):
        same = [radii(), radii()]
    assert len(counts) == 2
    assert (same[0] == once).all() and (same[1] == once).all()


class Plain(rv.VAE):
    """The first pixel is the code and the whole output: distances under noise are known."""

    latent, image_shape = 1, (1, 2, 2)

    def encode(self, x):
        return rv.models.PointMass(x[:, 0, 0, :1])

    def decode(self, z):
        return rv.models.PointMass(z[:, :, None, None].expand(-1, 1, 2, 2) / 2)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_smoothed_radii_are_sound(norm, generator):
    """|N(delta, s)| <= r has probability 1/2 at an exact delta; no radius reaches beyond it."""
    stddev, levels = 0.5, (0.3, 0.4, 0.6, 0.9)
    victim = rv.Victim(Plain(), rv.InputNoise(stddev))
    x = torch.rand(3, 1, 2, 2, generator=generator)
    question = rv.Question(r=1.0, center="mean", norm=norm)
    band = certified_radii(victim, x, question, levels, generator=rv.generator(0), draws=2000)
    assert band.kind == "probabilistic" and (band.radius[:, -1] > 0).all()
    ndtr = torch.special.ndtr
    for k, r in enumerate(levels):
        shift = torch.linspace(0, 2, 4001, dtype=torch.float64)
        chance = ndtr((r - shift) / stddev) - ndtr((-r - shift) / stddev)
        edge = float(shift[chance > 0.5].max()) if bool((chance > 0.5).any()) else 0.0
        scale = 1.0 if norm == "l2" else 0.5
        assert (band.radius[:, k] <= scale * edge + 1e-3).all()
    assert (band.radius.diff(dim=1) >= 0).all()


def test_victim_without_method_is_refused(generator):
    x = torch.rand(1, 1, 8, 8, generator=generator).float()
    with pytest.raises(errors.UnsupportedError, match="Posterior"):
        certified_radii(
            rv.Victim(rv.load("digits-vae"), "posterior-mode"),
            x,
            rv.Question(r=1.0),
            [1.0],
            generator=rv.generator(0),
        )
