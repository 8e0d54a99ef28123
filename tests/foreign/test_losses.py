"""The spread that a training loss implies: closed forms, and slopes equal to the bound's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae.errors import ConfigError, RangeError, UnknownNameError
from robustvae.models import TrainingLoss


@pytest.mark.parametrize(
    ("settings", "likelihood", "expected"),
    [
        ({"pixels": "sum"}, "gaussian", math.sqrt(1 / 2)),
        ({"pixels": "sum", "factor": 0.5, "beta": 9.0}, "gaussian", 3.0),
        ({"beta": 0.02}, "gaussian", math.sqrt(0.02 * 64 / 2)),
        ({"beta": 0.02, "latents": "mean"}, "gaussian", math.sqrt(0.02 / 4 * 64 / 2)),
        ({"pixels": "sum", "error_batch": "sum", "batch_size": 8}, "gaussian", 0.25),
        ({"divergence_batch": "sum", "batch_size": 2}, "gaussian", 8.0),
        ({"pixels": "sum", "beta": 0.5}, "laplace", math.sqrt(2) / 2),
        ({"beta": 0.5}, "laplace", math.sqrt(2) * 32),
    ],
)
def test_spreads_have_closed_forms(settings, likelihood, expected):
    assert TrainingLoss(**settings).stddev(64, 4, likelihood) == pytest.approx(expected, rel=1e-12)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(16, 4), nn.Linear(2, 16)

    def encode(self, x):
        return self.enc(x.flatten(1)).chunk(2, 1)

    def decode(self, z):
        return torch.tanh(self.dec(z))


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
@pytest.mark.parametrize("pixels", ["sum", "mean"])
@pytest.mark.parametrize("latents", ["sum", "mean"])
@pytest.mark.parametrize("batches", [("mean", "mean"), ("sum", "mean"), ("mean", "sum")])
def test_loss_and_bound_have_one_slope(likelihood, pixels, latents, batches):
    model, beta, factor, rows = Pair().double(), 0.3, 0.7, 5
    loss = TrainingLoss(factor, beta, pixels, latents, *batches, batch_size=rows)
    vae = rv.wrap(model, image_shape=(1, 4, 4), pixels=(-1, 1), likelihood=likelihood, stddev=loss)
    x = torch.rand(rows, 1, 4, 4, dtype=torch.float64, generator=rv.generator(0))
    u = 2 * x - 1
    mean, log_var = model.encode(u)
    residual = model.decode(mean).view_as(u) - u
    error = residual.square() if likelihood == "gaussian" else residual.abs()
    divergence = -0.5 * (1 + log_var - mean.square() - log_var.exp())
    reduced = {"sum": torch.sum, "mean": torch.mean}
    error = reduced[pixels](error.flatten(1), 1)
    divergence = reduced[latents](divergence, 1)
    total = factor * reduced[batches[0]](error, 0) + beta * reduced[batches[1]](divergence, 0)
    scale = beta / (2 if latents == "mean" else 1) / (rows if batches[1] == "mean" else 1)
    q = vae.encode(x)
    bound = vae.decode(q.mean).log_prob(x).flatten(1).sum(1)
    kl = rv.metrics.kl_to_standard_normal(q.mean, q.stddev)
    minus = scale * (kl - bound).sum()
    for one, other in zip(
        torch.autograd.grad(total, list(model.parameters())),
        torch.autograd.grad(minus, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_losses_that_say_nothing_are_refused():
    with pytest.raises(ConfigError, match="batch_size"):
        TrainingLoss(error_batch="sum")
    with pytest.raises(UnknownNameError, match="pixels"):
        TrainingLoss(pixels="median")
    with pytest.raises(RangeError, match="beta"):
        TrainingLoss(beta=0.0)
    with pytest.raises(ConfigError, match="likelihood"):
        rv.wrap(Pair(), image_shape=(1, 4, 4), likelihood="bernoulli", stddev=TrainingLoss())
