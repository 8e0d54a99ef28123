"""The study of beta: trends of models whose spread and slope are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae import errors
from robustvae.models import Gaussian
from robustvae.studies.beta_slopes import (
    CLAIMS,
    SIZES,
    RunSlopes,
    beta_slopes,
    run_slopes,
    runs_page,
)


class Encoder(nn.Module):
    def __init__(self, beta):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1 / beta))
        self.spread = beta / 10

    def forward(self, x):
        mean = self.scale * x.flatten(1)[:, :3]
        return Gaussian(mean, torch.full_like(mean, self.spread))


class Decoder(nn.Module):
    def __init__(self, beta):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.beta = beta

    def forward(self, z):
        mean = (self.scale * z[:, :1]).repeat(1, 64).view(-1, 1, 8, 8)
        return Gaussian(mean, torch.ones_like(mean))


def model(beta):
    return rv.wrap(encode=Encoder(beta), decode=Decoder(beta), latent=3, image_shape=(1, 8, 8))


def test_known_encoders_have_the_trends_they_were_given():
    betas = (0.5, 4.0, 1.0, 2.0, 8.0, 3.0)
    images = rv.data.load("digits", split="test")
    images = rv.data.Images(images.x.double(), images.y, images.name, images.split)
    found = beta_slopes({beta: model(beta) for beta in betas}, images, inputs=20)
    assert found.betas == tuple(sorted(betas))
    for i, beta in enumerate(found.betas):
        assert found.measured["encoder_std"][i] == pytest.approx((beta / 10, 0), abs=1e-12)
        assert found.measured["encoder_slope"][i][0] == pytest.approx(3**0.5 / beta)
        assert found.measured["encoder_weights"][i] == (pytest.approx(1 / beta), None)
    assert found.trend("encoder_std")[0] == pytest.approx(1)
    said = {key: found.verdict(key) for key in CLAIMS if key != "decoder_weights"}
    assert said == {
        "encoder_std": "agrees",
        "encoder_slope": "agrees",
        "encoder_weights": "the opposite here",
        "decoder_slope": "",
    }
    page = found.to_markdown("make it")
    assert "| 0.5 | 0.05 ± " in page and "rises ([Camuto21] Fig. 9c) | +1.00" in page


def test_a_trend_wants_three_models():
    with pytest.raises(errors.CheckpointError, match="at least 3 models, got 2"):
        beta_slopes({1.0: model(1.0), 2.0: model(2.0)}, rv.data.load("digits"))


def test_changes_over_runs_are_taken_seed_by_seed():
    rising, noisy = [[1.0, 2.0, 4.0], [1.1, 2.2, 4.4]], [[1.0, 2.0, 4.0], [1.5, 1.0, 4.4]]
    found = RunSlopes(
        "elbo",
        (1.0, 10.0),
        {
            "encoder_std": rising,
            "encoder_slope": rising,
            "encoder_weights": noisy,
            "decoder_weights": rising[::-1],
            "decoder_slope": rising,
        },
    )
    assert found.change("encoder_std") == (pytest.approx(10), pytest.approx(0, abs=1e-6))
    assert found.change("encoder_weights")[1] == pytest.approx(
        4.3026527 / 3**0.5 * torch.tensor([50.0, -50.0, 10.0]).std().item()
    )
    assert {key: found.verdict(key) for key in CLAIMS} == {
        "encoder_std": "agrees",
        "encoder_slope": "the opposite here",
        "encoder_weights": "absent here",
        "decoder_weights": "agrees",
        "decoder_slope": "",
    }


@pytest.mark.parametrize("objective", ["elbo", "total-correlation"])
def test_the_smallest_size_trains_once_and_measures_every_run(objective, tmp_path):
    train, test = rv.data.load("digits"), rv.data.load("digits", split="test")
    torch.set_default_dtype(torch.float32)
    found = run_slopes(train, test, objective, runs=tmp_path, size="smoke", seeds=2)
    assert found.betas == (1.0, 10.0)
    assert all(len(runs) == 2 for values in found.measured.values() for runs in values)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("log.jsonl")}
    assert run_slopes(train, test, objective, runs=tmp_path, size="smoke", seeds=2) == found
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("log.jsonl")}
    page = runs_page([found], vars(SIZES["smoke"]) | {"data": "digits", "seeds": 2}, "make it")
    assert f"## {objective}" in page and "2 seeds" in page


def test_runs_are_at_least_two_of_a_known_objective(tmp_path):
    few = rv.data.load("digits")
    with pytest.raises(errors.RangeError, match="seeds"):
        run_slopes(few, few, "elbo", runs=tmp_path, seeds=1)
    with pytest.raises(errors.UnknownNameError):
        run_slopes(few, few, "mixup", runs=tmp_path)
