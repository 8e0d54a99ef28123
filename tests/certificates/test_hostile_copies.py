"""Models that differ from the copy that is bounded: none gets a certificate."""

import copy

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae import errors
from robustvae.certificates.networks import exact_copy
from robustvae.models import create

SHAPE = (1, 4, 4)


class Model(rv.VAE):
    """Dense layers of a stranger."""

    latent, image_shape = 1, SHAPE

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(16, 1), nn.Linear(1, 1), nn.Linear(1, 16)

    def encode(self, x):
        mean = self.b(self.a(x.flatten(1)))
        return rv.models.Gaussian(mean, torch.full_like(mean, 0.01))

    def decode(self, z):
        y = self.out(z).view(-1, *SHAPE)
        return rv.models.Gaussian(y, torch.ones_like(y))


class Tame(nn.Linear):
    """Its copy is an ordinary layer, or one of its class with other weights."""

    def forward(self, x):
        y = super().forward(x)
        return y + 50 * ((y - 2.1).abs() < 0.02)

    def __deepcopy__(self, memo):
        layer = nn.Linear(self.in_features, self.out_features)
        layer.weight, layer.bias = (copy.deepcopy(part, memo) for part in (self.weight, self.bias))
        return layer


class Forgetful(nn.Linear):
    def __reduce_ex__(self, protocol):
        return nn.Linear, (self.in_features, self.out_features)


class Shrinking(nn.Linear):
    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.weight.data.mul_(0.5)
        return self


def inside(kind):
    def change(vae):
        vae.a = kind(16, 1)

    return change


def of_the_model(vae):
    tame = copy.deepcopy(vae)
    vae.__deepcopy__ = lambda memo: tame


def of_a_weight(vae):
    other = nn.Parameter(vae.out.weight.detach() / 2)
    vae.out.weight.__deepcopy__ = lambda memo: other


def as_a_module(vae):
    class Copier(nn.Module):
        def forward(self, memo):
            return Model()

    vae.add_module("__deepcopy__", Copier())


CHANGES = [
    inside(Tame),
    inside(Forgetful),
    inside(Shrinking),
    of_the_model,
    of_a_weight,
    as_a_module,
]


@pytest.mark.parametrize("change", CHANGES)
def test_copy_of_its_own_is_refused(change, generator):
    """False before: 1.0 at a step of 0.1 where nothing stayed within r."""
    vae, x = Model().eval(), torch.rand(1, *SHAPE, generator=generator)
    change(vae)
    with pytest.raises(errors.UnsupportedError, match=r"copy|copies"):
        exact_copy(vae)
    for method in ("noncentral", "neyman_pearson", "support_set"):
        lower = rv.certify(vae, x, 1.0, methods=[method], generator=rv.generator(0))
        assert not float(lower.radius[0]) and any("cop" in text for text in lower.assumptions)


def test_copy_of_known_model_refused(generator):
    vae = create("vae", architecture="mlp", image_shape=SHAPE, latent=2, hidden=[4], stddev=0.1)
    ask = {"displacement": "centered", "methods": ["neyman_pearson"], "draws": 200}
    x = torch.rand(1, *SHAPE, generator=generator)
    exact_copy(vae)
    name = next(name for name, part in vae.trunk.named_modules() if type(part) is nn.Linear)
    vae.trunk[int(name)] = Tame(16, 4)
    lower = rv.certify(vae, x, 1.0, generator=rv.generator(0), **ask)
    assert not float(lower.radius[0]) and any("Tame" in text for text in lower.assumptions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_honest_copy_is_kept(dtype):
    vae = Model().to(dtype)
    vae.register_buffer("unset", None)
    vae.out.weight.data[0] = torch.nan
    twin = exact_copy(vae)
    assert twin is not vae and twin.dtype == torch.float64
