"""Modules that do more in their forward pass than their two parts: none is judged by the parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae import errors
from robustvae.models.adapters.black_box import BlackBox
from robustvae.seeding import generator, rand

SHAPE = {"image_shape": (1, 8, 8)}


class Net(nn.Module):
    """An encoder and a decoder as parts, and a forward pass that draws."""

    def __init__(self, width=64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
            self.decoder = nn.Sequential(nn.Linear(4, width), nn.Unflatten(1, (1, 8, width // 8)))

    def draw(self, x):
        mean, log_var = self.encoder(x).chunk(2, 1)
        return mean + torch.randn_like(mean) * (log_var / 2).exp(), mean, log_var

    def forward(self, x):
        z, mean, log_var = self.draw(x)
        return self.decoder(z), mean, log_var


class Mirrored(Net):
    def forward(self, x):
        z, mean, log_var = self.draw(x)
        return self.decoder(z).flip(-1), mean, log_var


class Scaled(Net):
    def forward(self, x):
        return super().forward(2 * x - 1)


class Padded(nn.Module):
    """A plain autoencoder whose borders are set to zero after the decoder."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.enc = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
            self.dec = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))

    def forward(self, x):
        inner = self.dec(self.enc(x))[..., 1:-1, 1:-1]
        return nn.functional.pad(inner, (1, 1, 1, 1))


class Conditional(Net):
    """A condition that shifts the features; parts alone would drop it."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Embedding(3, 8)

    def encode(self, x, y):
        return (self.encoder(x) + self.shift(y)).chunk(2, 1)

    def decode(self, z, y):
        return self.decoder(z + self.shift(y)[:, :4])

    def forward(self, x, y):
        mean, log_var = self.encode(x, y)
        return self.decode(mean, y), mean, log_var


class Squashed(Net):
    def forward(self, x):
        z, mean, log_var = self.draw(x)
        return torch.sigmoid(self.decoder(z)), mean, log_var


@pytest.fixture
def x():
    return rand(5, 1, 8, 8, generator=generator(0), like=torch.zeros(0))


def test_changed_parts_are_not_taken(x):
    """Forward turns or pads what the decoder makes: forward itself decodes in its place."""
    for model in (Mirrored(), Padded()):
        vae = rv.wrap(model, **SHAPE)
        z = rand(5, 4, generator=generator(1), like=x)
        with torch.no_grad():
            part = model.decoder(z) if isinstance(model, Mirrored) else model.dec(z)
            inner = part[..., 1:-1, 1:-1]
            padded = nn.functional.pad(inner, (1, 1, 1, 1))
            expected = part.flip(-1) if isinstance(model, Mirrored) else padded
            torch.testing.assert_close(vae.decode(z).mean, expected)


def test_scaled_inputs_reach_the_encoder(x):
    model = Scaled()
    mean = rv.wrap(model, **SHAPE).encode(x).mean
    torch.testing.assert_close(mean, model.encoder(2 * x - 1)[:, :4])


def test_dropped_condition_is_refused(x):
    with pytest.raises(errors.ModelError, match="give wrap"):
        rv.wrap(Conditional(), **SHAPE)
    model, y = Conditional(), torch.zeros(5, dtype=torch.int64)
    vae = rv.wrap(
        encode=lambda x: model.encode(x, y[: len(x)]),
        decode=lambda z: model.decode(z, y[: len(z)]),
        latent=4,
        returns="mean_log_var",
        **SHAPE,
    )
    torch.testing.assert_close(vae.encode(x).mean, model.encode(x, y)[0])


def test_squashing_is_read_as_log_odds(x):
    model = Squashed()
    vae = rv.wrap(model, **SHAPE)
    mean = model.encoder(x)[:, :4]
    torch.testing.assert_close(vae.encode(x).mean, mean)
    torch.testing.assert_close(vae.decode(mean).mean, torch.sigmoid(model.decoder(mean)))
    assert "log odds" in vae.recognized


def test_unchanged_parts_are_taken(x):
    model = Net()
    vae = rv.wrap(model, **SHAPE)
    assert not isinstance(vae, BlackBox)
    torch.testing.assert_close(vae.encode(x).mean, model.encoder(x)[:, :4])
    assert not model.encoder._forward_pre_hooks and not model.decoder._forward_hooks
