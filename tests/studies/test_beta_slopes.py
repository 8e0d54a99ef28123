"""The study of beta: trends of models whose spread and slope are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae import errors
from robustvae.models import Gaussian
from robustvae.studies.beta_slopes import CLAIMS, beta_slopes


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
