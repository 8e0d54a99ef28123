"""Ways in which models are deployed: one line each."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import robustvae as rv

WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


class Net(nn.Module):
    """Mean and log-variance, as a tuple."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(64, 8), nn.Linear(4, 64)

    def encode(self, x):
        h = self.enc(x.flatten(1))
        return h[:, :4], h[:, 4:] - 3

    def decode(self, z):
        return torch.sigmoid(self.dec(z)).view(-1, 1, 8, 8)

    def forward(self, x):
        mean, log_var = self.encode(x)
        return self.decode(mean), mean, log_var


@way
def parallel():
    return nn.DataParallel(Net())


@way
def normed():
    net = Net()
    net.enc, net.dec = weight_norm(net.enc), weight_norm(net.dec)
    return net


@way
def brain_floats():
    return Net().to(torch.bfloat16)


@way
def named():
    class Named(Net):
        def forward(self, x):
            image, mean, log_var = super().forward(x)
            return {"recon": image, "mu": mean, "logvar": log_var}

    return Named()


@way
def traced():
    return torch.jit.trace_module(
        Net(), {"encode": torch.rand(1, 1, 8, 8), "decode": torch.rand(1, 4)}
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", WAYS)
def test_deployed_models_take_one_line(name):
    model = WAYS[name]()
    vae = rv.wrap(model, image_shape=(1, 8, 8))
    assert vae.latent == 4 and not vae.output_only
    x = torch.rand(2, 1, 8, 8, dtype=vae.dtype)
    search = rv.ProjectedAscent(steps=2, restarts=2)
    attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("l2", 0.5))
    assert bool((attack(rv.Victim(vae), x, generator=rv.generator(0)).score > 0).all())
