"""Latent-diffusion-like models under `minutes`: what is required is done, in bounded memory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import robustvae as rv
from robustvae.seeding import generator, rand

FILE = Path(__file__).parents[2] / "examples" / "latent_autoencoder.py"


def loaded():
    spec = importlib.util.spec_from_file_location("latent_autoencoder", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["latent_autoencoder"] = module
    spec.loader.exec_module(module)
    return module


def pictures(side):
    like = torch.zeros(0, dtype=torch.float32)
    x = rand(4, 3, side, side, like=like, generator=generator(0))
    return rv.data.from_tensor(torch.nn.functional.avg_pool2d(x, 5, 1, 2))


def judged(model, side, minutes):
    vae = rv.wrap(model, image_shape=(3, side, side))
    noisy = rv.Victim(vae, rv.InputNoise(stddev=0.1))
    victims = {"plain": rv.Victim(vae), "noise": noisy}
    return vae, rv.audit(victims, pictures(side), question={"r": side / 10}, minutes=minutes)


def test_large_codes_have_no_whole_jacobian():
    model = loaded().LatentAutoencoder((4, 4), side=64).float()
    vae = rv.wrap(model, image_shape=(3, 64, 64))
    plan = {"base": "smoke", "inputs": 2, "probes": 0, "margins": None, "products": 6}
    record = rv.audit(vae, pictures(64), {**plan, "draws": 10}, question={"r": 10.0})
    reasons = {entry.stage: entry.reason for entry in record.left_out}
    assert "whole Jacobian" in reasons["first-order"]
    assert all(row["spectral_radius"] > 0 for row in record.rows)
    assert all(row["effective_rank"] is None for row in record.rows)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("build", 64), ("build_tiny", 64)])
def test_required_stages_fit_into_minutes(name, side):
    model = getattr(loaded(), name)().float()
    _, record = judged(model, side, 2.0)
    plain = [row for row in record.rows if row["victim"] == "plain"]
    assert {row["input"] for row in plain} == {0, 1, 2, 3}
    assert all(row["damage"] > 0 and row["damage_noise"] > 0 for row in plain)
    assert all(row["spectral_radius"] > 0 for row in plain)
    assert record.plan["attacks"][0]["search"]["steps"] >= 20
    assert record.plan["smoothing"] >= 200
    assert record.timing.seconds < 150
