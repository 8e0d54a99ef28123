"""Verified constants: which models have them, and that no pair of points exceeds them."""

import pytest
import torch

import robustvae as rv
from robustvae import errors
from robustvae.certificates import lipschitz_constants
from robustvae.models.lipschitz import ARCHITECTURES as LIPSCHITZ_ARCHITECTURES
from robustvae.models.networks import ARCHITECTURES
from robustvae.testing import members_of

# every architecture of `vae` is covered; the models that are not are refused by name
COVERED = ["conv28", "conv32", "conv64", "conv64_tanh", "conv8", "mlp"]
REFUSED = {
    "dlgm": {"architecture": "conv8", "widths": [4, 3]},
    "nvae": {"image_shape": (1, 8, 8), "channels": 4},
    "seatbelt": {"architecture": "conv8", "widths": [4, 3]},
}
SLOW = [pytest.mark.slow]  # its widest layers have blocks of 1024


def lipschitz(**options):
    given = {"latent": 4, "image_shape": (1, 8, 8), "encoder_lipschitz": 4.0}
    return rv.models.create("lipschitz-vae", decoder_lipschitz=6.0, **given | options).double()


def convolutional(**options):
    pytest.importorskip("orthogonium", reason="needs the extra `lipschitz`")
    return lipschitz(architecture="conv", channels=[16], hidden=[16], **options)


def largest_gain(f, one, generator, *, steps=0):
    """The largest |f(p) - f(q)| / |p - q| over pairs from 1e-3 to 1 apart in every coordinate.

    With `steps`, p - q is turned along the gradient of |f(p) - f(q)|^2: a power iteration.
    """
    size = torch.logspace(-3, 0, 4).repeat(len(one) // 4 + 1)[: len(one)]
    size = size.reshape(-1, *[1] * (one.ndim - 1))
    shift = size * torch.randn(one.shape, generator=generator)
    reach = shift.flatten(1).norm(dim=1).reshape(size.shape)
    largest = 0.0
    with torch.no_grad():
        here = f(one)
    for turn in range(steps + 1):
        shift.requires_grad_(turn < steps)
        apart = (f(one + shift) - here).flatten(1).norm(dim=1)
        largest = max(largest, float((apart / shift.flatten(1).norm(dim=1)).detach().max()))
        if turn < steps:
            (grad,) = torch.autograd.grad(apart.square().sum(), shift)
            scale = grad.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(size.shape)
            shift = (reach * grad / scale).detach()
    return largest


def parts(vae, generator, pairs):
    """Each part of the model: the map, where it is asked, and the attribute with its constant."""
    x = torch.rand(pairs, *vae.image_shape, dtype=vae.dtype, generator=generator)
    z = 2 * torch.randn(pairs, vae.latent, dtype=vae.dtype, generator=generator)
    yield "b", lambda x: vae.encode(x).mean, x
    yield "a", lambda z: vae.decode(z).mean, z
    if not lipschitz_constants(vae).fixed_stddev:
        yield "c", lambda x: vae.encode(x).stddev, x


NETS = {
    "groupsort": lambda: lipschitz(hidden=[32, 32]),
    "maxmin": lambda: lipschitz(hidden=[32, 32], activation="maxmin"),
    "learned stddev": lambda: lipschitz(hidden=[32, 32], stddev=None),
    "identity output": lambda: lipschitz(hidden=[32, 32], likelihood="gaussian"),
    "exact mean": lambda: lipschitz(hidden=[32], likelihood="continuous_bernoulli_exact"),
    "convolutional": convolutional,
    "convolutional, maxmin": lambda: convolutional(activation="maxmin"),
}


@pytest.mark.parametrize("name", NETS)
def test_no_pair_exceeds_verified_constant(name, generator):
    """100,000 random pairs, and 1,000 whose difference 20 gradients turned: 20,000 more."""
    vae = NETS[name]()
    constants = lipschitz_constants(vae)
    assert 4.0 <= constants.b <= 4.0 * (1 + 1e-5)
    assert 6.0 <= constants.a_logits <= 6.0 * (1 + 1e-5)
    for attribute, f, points in parts(vae, generator, 100_000):
        bound = getattr(constants, attribute)
        with torch.no_grad():
            gains = [largest_gain(f, part, generator) for part in points.split(5000)]
        attacked = largest_gain(f, points[:1000], generator, steps=20)
        assert 0 < max(*gains, attacked) <= bound * (1 + 1e-9)


def test_pairs_come_close_to_constants(generator):
    """So that a constant which is too small by a hundredth would be caught."""
    vae = lipschitz(hidden=[32, 32], likelihood="gaussian")
    constants = lipschitz_constants(vae)
    for attribute, f, points in parts(vae, generator, 400):
        attacked = largest_gain(f, points, generator, steps=40)
        assert attacked > 0.99 * getattr(constants, attribute)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW if n == "conv64_tanh" else []) for n in COVERED]
)
def test_covered_architectures_have_constants(name, generator):
    vae = rv.models.create("vae", architecture=name, latent=4).double().eval()
    constants = lipschitz_constants(vae)
    for attribute, f, points in parts(vae, generator, 8):
        gain = largest_gain(f, points, generator, steps=5)
        assert 0 < gain <= getattr(constants, attribute) * (1 + 1e-9)


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_raise_by_name(name):
    vae = rv.models.create(name, **REFUSED[name])
    with pytest.raises(errors.UnsupportedError, match=type(vae).__name__):
        lipschitz_constants(vae)


def test_architecture_model_covered_or_refused():
    assert sorted(COVERED) == sorted(ARCHITECTURES)
    assert {"vae", "lipschitz-vae", *REFUSED} == members_of("robustvae", "model")
    assert set(LIPSCHITZ_ARCHITECTURES) == {"conv", "mlp"}


def test_constants_follow_the_image_shape(generator):
    """The norm of a zero-padded convolution depends on the features it meets."""
    layer = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    torch.nn.init.ones_(layer.weight)
    small, large = (rv.certificates.lipschitz_bound(layer, (1, n, n)) for n in (1, 20))
    assert 1.0 <= small <= large <= 9.0 * (1 + 1e-9)
    with pytest.raises(errors.UnsupportedError, match="Conv2d"):
        rv.certificates.lipschitz_bound(layer)
