"""Functions that want images take whatever holds some, and give the same for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import robustvae as rv
from robustvae import errors
from robustvae.data import verbs
from robustvae.robustness import Budget

VERBS = {
    "attack": lambda victim, x: (
        rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=1, restarts=1), rv.Ball("l2", 0.5))(
            victim, x, generator=rv.generator(0)
        ).score
    ),
    "certify": lambda victim, x: (
        rv.certify(
            rv.Victim(victim.vae, rv.InputNoise(0.25)),
            x,
            r=1.5,
            methods=["smoothing"],
            draws=50,
            generator=rv.generator(0),
        ).radius
    ),
    "curve": lambda victim, x: (
        rv.certified_curve(
            rv.Victim(victim.vae, rv.InputNoise(0.25)),
            x,
            sizes=[0.1],
            draws=50,
            generator=rv.generator(0),
        ).tolerance
    ),
    "margin": lambda victim, x: (
        rv.estimate_margin(
            victim,
            x,
            1.0,
            generator=rv.generator(0),
            budget=Budget(starts=1, steps=1, draws=20, choosing=5),
        ).value
    ),
    "probability": lambda victim, x: (
        rv.robustness_probability(
            victim, x, x, 1.0, "full", generator=rv.generator(0), draws=10
        ).value
    ),
    "pullback": lambda victim, x: rv.pullback(victim.vae, x).spectral_radius,
    "evaluate": lambda victim, x: torch.tensor(
        rv.evaluate(victim.vae, x, seed=0, inputs=4, parts=["reconstruction"])["mse"].value
    ),
    "check": lambda victim, x: torch.tensor(rv.check(victim, x).passed),
}


@pytest.fixture(scope="module")
def pixels():
    x = rv.data.load("digits", split="test").x[:4]
    return (255 * x).round().byte()


def held_by(pixels, folder):
    """The same four pictures, held in other ways than a tensor in [0, 1]."""
    for i, one in enumerate(pixels):
        Image.fromarray(one[0].numpy()).save(folder / f"{i}.png")
    unit = pixels / 255.0
    np.save(folder.parent / "pictures.npy", unit.numpy())
    return {
        "bytes": pixels,
        "array": pixels.numpy(),
        "channels last": pixels.movedim(1, -1).numpy(),
        "Images": rv.data.from_tensor(unit),
        "Dataset": TensorDataset(unit, torch.zeros(4, dtype=torch.int64)),
        "DataLoader": DataLoader(TensorDataset(unit), batch_size=3),
        "pair": (unit, torch.arange(4)),
        "list": [Image.fromarray(one[0].numpy()) for one in pixels],
        "folder": folder,
        "file": str(folder.parent / "pictures.npy"),
    }


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_reads_inputs(verb, pixels, tmp_path):
    vae = rv.load("digits-vae").float()
    victim, folder = rv.Victim(vae), tmp_path / "pictures"
    folder.mkdir()
    expected = VERBS[verb](victim, (pixels / 255.0).float())
    for holder in held_by(pixels, folder).values():
        result = VERBS[verb](victim, holder)
        torch.testing.assert_close(result, expected, equal_nan=True)


def test_models_read_their_own_unit():
    model = torch.nn.Sequential(torch.nn.Linear(6, 2), torch.nn.Linear(2, 6)).float()
    space = rv.data.InputSpace((6,), low=-1, high=1)
    vae = rv.wrap(model, pixels=space)
    audio = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    search, ball = rv.ProjectedAscent(steps=1, restarts=1), rv.Ball("l2", 0.1)
    attack = rv.Attack(rv.MaximumDamage(), search, ball)
    result = attack(rv.Victim(vae), audio, generator=rv.generator(0))
    assert result.x_adv.shape == (2, 1, 1, 6) and result.status == ("ok", "ok")


def test_too_much_at_once_is_refused(monkeypatch, pixels):
    monkeypatch.setattr(verbs, "BYTES", 100)
    with pytest.raises(errors.DataError, match=r"at once: give some of them"):
        rv.pullback(rv.load("digits-vae"), pixels.numpy())


@pytest.mark.parametrize("wrong", [None, Image.new("L", (8, 8)), {"image": 1}, iter([1])])
def test_what_holds_no_inputs_is_refused(wrong):
    with pytest.raises(errors.DtypeError, match="x must be"):
        rv.pullback(rv.load("digits-vae"), wrong)
    with pytest.raises(errors.DtypeError, match="must be an Images, got"):
        rv.evaluate(rv.load("digits-vae"), wrong, seed=0)
