import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Independent, Normal
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.models import base, registry
from robustvae.models.networks import ARCHITECTURES

# every registered model with the smallest options that exercise it
SMALL = {
    "vae": [
        {"architecture": "mlp", "latent": 3, "image_shape": (1, 8, 8), "hidden": [16]},
        {"architecture": "mlp", "latent": 3, "image_shape": (3, 4, 4), "activation": "tanh"},
        {"architecture": "conv8", "latent": 3, "likelihood": "continuous_bernoulli"},
        {"architecture": "conv28", "latent": 4, "image_shape": (3, 28, 28)},
        {"architecture": "conv28", "latent": 4, "likelihood": "gaussian", "scale": 0.5},
        {"architecture": "conv32", "latent": 4},
        {"architecture": "conv64", "latent": 4},
        {"architecture": "conv64_tanh", "latent": 4},
        {"hidden": [8, 8, 16], "latent": 4, "activation": "tanh", "batch_norm": True},
        {"architecture": "conv8", "latent": 3, "stddev": 0.1},
        {"architecture": "conv8", "latent": 3, "stddev_offset": 0.5, "stddev_norm": 1.0},
    ],
    "dlgm": [
        {"architecture": "conv8", "widths": [4, 3, 2]},
        {"hidden": [8], "widths": [4], "batch_norm": True},
    ],
    "nvae": [
        {"image_shape": (1, 8, 8), "channels": 4},
        {"image_shape": (3, 32, 32), "likelihood": "gaussian"},
    ],
    "seatbelt": [
        {"architecture": "conv8", "widths": [4, 3, 2], "between": []},
        {"architecture": "conv28", "widths": [4, 4], "likelihood": "gaussian"},
    ],
    "lipschitz-vae": [{"latent": 3, "image_shape": (1, 8, 8), "hidden": [16, 16]}],
}
CASES = [(name, options) for name in registry.names() for options in SMALL[name]]


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda v: str(v))
def test_every_model_keeps_contract(name, options):
    vae = rv.models.create(name, **options)
    x = torch.rand(5, *vae.image_shape, dtype=vae.dtype)
    q = vae.encode(x)
    assert q.mean.shape == q.stddev.shape == q.log_prob(q.mean).shape == (5, vae.latent)
    assert (q.stddev > 0).all()
    p = vae.decode(q.mean)
    assert p.mean.shape == p.stddev.shape == p.log_prob(x).shape == x.shape
    joint = p.log_prob(x).flatten(1).sum(1) + vae.prior().log_prob(q.mean).sum(1)
    assert_close(vae.log_joint(x, q.mean), joint)
    assert vae.prior().mean.shape == (vae.latent,)
    assert sum(vae.widths or (vae.latent,)) == vae.latent
    again = rv.models.create(name, **vae.config)
    assert_close(again.encode(x).mean, q.mean)


def test_every_architecture_is_covered():
    assert {o.get("architecture", "mlp") for o in SMALL["vae"]} == set(ARCHITECTURES)


def test_spread_may_be_constant_or_clipped():
    options = {"architecture": "conv8", "latent": 3}
    x = torch.rand(9, 1, 8, 8)
    learned = rv.models.create("vae", **options).double().encode(x).stddev

    def stddev(**more):
        return rv.models.create("vae", **options, **more).double().encode(x).stddev

    assert_close(stddev(stddev=0.3), torch.full((9, 3), 0.3))
    assert_close(stddev(stddev_offset=0.5), learned + 0.5)
    most = float(learned.detach().norm(dim=1).median())
    clipped = stddev(stddev_norm=most)
    assert_close(clipped.norm(dim=1), learned.norm(dim=1).clamp(max=most))
    assert_close(clipped / clipped.norm(dim=1, keepdim=True), nn.functional.normalize(learned))


def test_batch_norm_stands_before_activation_mlp():
    vae = rv.models.create("vae", latent=4, hidden=[8, 16], activation="tanh", batch_norm=True)
    kinds = [type(layer).__name__ for layer in (*vae.trunk, *vae.decoder)]
    block = ["Linear", "BatchNorm1d", "Tanh"]
    assert kinds == ["Flatten", *block, *block, *block, *block, "Linear", "Unflatten"]


def test_seed_alone_decides_first_weights():
    state = torch.random.get_rng_state()
    one, two, other = (
        rv.models.create("vae", architecture="conv8", latent=2, seed=s) for s in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert_close(one.state_dict(), two.state_dict())
    assert not torch.equal(one.mean_head.weight, other.mean_head.weight)


def test_float64_goes_through():
    vae = rv.models.create("vae", architecture="conv8", latent=2).double()
    assert vae.decode(vae.encode(torch.rand(2, 1, 8, 8).double()).mean).mean.dtype == torch.float64


def test_images_another_type_or_shape_refused():
    vae = rv.models.create("vae", architecture="conv8", latent=2).float()
    with pytest.raises(errors.DtypeError, match=r"float64.*float32"):
        vae.encode(torch.rand(1, 1, 8, 8).double())
    with pytest.raises(errors.ShapeError, match=r"\(B, 1, 8, 8\), got \(1, 8, 8\)"):
        vae.encode(torch.rand(1, 8, 8).float())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"architecture": "conv9"}, errors.UnknownNameError),
        ({"architekture": "conv8"}, errors.UnknownNameError),
        ({"architecture": "conv8", "image_shape": (1, 28, 28)}, errors.ShapeError),
        ({"architecture": "conv8", "hidden": [3]}, errors.ConfigError),
        ({"architecture": "mlp", "hidden": [0]}, errors.RangeError),
        ({"architecture": "mlp", "latent": 0}, errors.RangeError),
        ({"architecture": "mlp", "latent": 2.5}, errors.DtypeError),
        ({"likelihood": "normal"}, errors.UnknownNameError),
        ({"likelihood": "gaussian", "scale": -1.0}, errors.RangeError),
        ({"image_shape": (28, 28)}, errors.ShapeError),
        ({"architecture": "conv64_tanh", "batch_norm": True}, errors.ConfigError),
        ({"batch_norm": "yes"}, errors.DtypeError),
        ({"stddev": 0.0}, errors.RangeError),
        ({"stddev": 0.1, "stddev_offset": 0.1}, errors.ConfigError),
        ({"stddev": 0.1, "stddev_norm": 1.0}, errors.ConfigError),
        ({"stddev_offset": -0.1}, errors.RangeError),
        ({"stddev_norm": float("nan")}, errors.NonFiniteError),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else v.__name__,
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error):
        rv.models.create("vae", **options)


@pytest.mark.parametrize("name", ["dlgm", "seatbelt"])
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"widths": []}, errors.ShapeError),
        ({"widths": [3, 0]}, errors.RangeError),
        ({"widths": 3}, errors.DtypeError),
        ({"between": [0]}, errors.RangeError),
        ({"latent": 3}, errors.UnknownNameError),
        ({"likelihood": "normal"}, errors.UnknownNameError),
        ({"scale": 0}, errors.RangeError),
    ],
)
def test_bad_hierarchies_are_refused(name, options, error):
    with pytest.raises(error):
        rv.models.create(name, **{"architecture": "conv8"} | options)


def test_frozen_restores_everything():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    module[1].eval()
    with pytest.raises(ZeroDivisionError), base.frozen(module):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
        raise ZeroDivisionError
    assert module.training
    assert module[0].training
    assert not module[1].training
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x):
        return self.layer(x.flatten(1)).chunk(2, dim=1)

    def posterior(self, x):
        mean, log_var = self(x)
        return Independent(Normal(mean, (0.5 * log_var).exp()), 1)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 16)

    def forward(self, z):
        return TorchBernoulli(logits=self.layer(z).view(-1, 1, 4, 4))


def wrapped(encode, decode, **options):
    return rv.wrap(encode=encode, decode=decode, latent=2, image_shape=(1, 4, 4), **options)


def test_wrap_takes_modules_and_methods():
    encoder, decoder = Encoder(), Decoder()
    x = torch.rand(3, 1, 4, 4)
    pair = wrapped(encoder, decoder, returns="mean_log_var")
    bound = wrapped(encoder.posterior, decoder)
    assert_close(pair.encode(x).mean, bound.encode(x).mean)
    assert_close(pair.encode(x).stddev, bound.encode(x).stddev)
    assert_close(pair.log_joint(x, torch.zeros(3, 2)), bound.log_joint(x, torch.zeros(3, 2)))
    for vae in (pair, bound):
        assert len(list(vae.parameters())) == 4
        vae.eval()
        assert not encoder.training
        vae.train()
    assert bound.encode(x).log_prob(torch.zeros(3, 2)).shape == (3, 2)


def test_wrap_expands_constant_spread():
    vae = wrapped(
        lambda x: Normal(x.flatten(1)[:, :2], 0.1),
        lambda z: Normal(z.repeat(1, 8).view(-1, 1, 4, 4), 1.0),
    )
    q = vae.encode(torch.rand(3, 1, 4, 4).double())
    assert q.stddev.shape == (3, 2)
    assert q.mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("encode", "options", "error", "says"),
    [
        (3, {}, errors.DtypeError, "must be a function"),
        (lambda x: (x, x), {}, errors.DtypeError, "mean_log_var"),
        (lambda x: x, {}, errors.DtypeError, "got Tensor"),
        (
            lambda x: Normal(x.flatten(1)[:, :3], 1.0),
            {},
            errors.ShapeError,
            r"\(2, 2\), got \(2, 3\)",
        ),
        (lambda x: x, {"returns": "pair"}, errors.UnknownNameError, "mean_log_var"),
        (
            lambda x: rv.models.Gaussian(x.flatten(1)[:, :2], -x.flatten(1)[:, :2] - 1),
            {},
            errors.RangeError,
            "standard deviations",
        ),
    ],
)
def test_wrap_rejects_bad_arguments(encode, options, error, says):
    with pytest.raises(error, match=says):
        wrapped(encode, Decoder(), **options).encode(torch.rand(2, 1, 4, 4))
