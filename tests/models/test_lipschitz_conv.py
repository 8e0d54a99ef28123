"""Lipschitz-VAEs with orthogonal convolutions: orthogonium trains them, nothing needs it after."""

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.certificates import lipschitz_constants
from robustvae.models import checkpoint, orthogonal
from robustvae.models.orthogonal import MoveChannels, convolutions, raw_of
from robustvae.models.sorts import GroupSort

K = 3.0


def small(**options):
    given = {"latent": 3, "image_shape": (1, 8, 8), "channels": [16, 16], "hidden": [16]} | options
    return rv.models.create(
        "lipschitz-vae", architecture="conv", encoder_lipschitz=K, decoder_lipschitz=K, **given
    )


@pytest.fixture
def vae():
    pytest.importorskip("orthogonium", reason="needs the extra `lipschitz`")
    return small()


@pytest.fixture
def no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "orthogonium", None)
    for name in [name for name in sys.modules if name.startswith("orthogonium.")]:
        monkeypatch.delitem(sys.modules, name)
    orthogonal._template.cache_clear()


def trained(vae, generator, steps=20):
    x = torch.rand(16, *vae.image_shape, dtype=vae.dtype, generator=generator)
    optimizer = torch.optim.Adam([p for p in vae.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    vae.train()
    for _ in range(steps):
        loss = rv.objectives.ELBO()(vae, x, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        vae.after_step()
        losses.append(float(loss.detach()))
    vae.finalize()
    return losses


@pytest.mark.parametrize("activation", ["groupsort", "maxmin"])
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 8, 12)])
def test_constants_hold_before_and_after(vae, activation, image_shape, generator):
    vae = small(activation=activation, image_shape=image_shape, stddev=None)
    for _ in range(2):
        found = lipschitz_constants(vae)
        for bound in (found.b, found.a_logits):
            assert K * (1 - 1e-9) <= bound <= K * (1 + 1e-5)
        losses = trained(vae, generator)
        assert losses[-1] < losses[0]


def test_orthogonal_kernels_and_their_adjoint(vae):
    """On a torus W W^T is the identity; the oracle feeds the identity through."""
    layer = vae.mean_net[5]  # 16 to 16 channels: 64 phases in, 16 channels out
    eye = torch.eye(16 * 64, dtype=vae.dtype).reshape(-1, 16, 8, 8)
    wrapped = nn.functional.pad(eye, (1, 1, 1, 1), mode="circular")
    matrix = nn.functional.conv2d(wrapped, layer.weight, stride=2).flatten(1).detach()
    assert_close(matrix.mT @ matrix, torch.eye(16 * 16, dtype=vae.dtype), atol=1e-5, rtol=0)
    transposed = next(part for part in vae.decoder if isinstance(part, nn.ConvTranspose2d))
    assert transposed.weight.shape == (16, 16, 4, 4)
    assert not torch.equal(transposed.weight, layer.weight)


def test_training_mode_keeps_values(vae, generator):
    x = torch.rand(4, 1, 8, 8, dtype=vae.dtype, generator=generator)
    found = [vae.train(mode).decode(vae.encode(x).mean).mean for mode in (True, False)]
    assert_close(*found, atol=1e-5, rtol=1e-5)
    found[0].square().sum().backward()
    for layer in convolutions(vae):
        assert layer.weight.grad is None and not layer.weight.requires_grad
        assert raw_of(layer) and all(raw.grad.norm() > 0 for raw in raw_of(layer))


def test_evaluation_uses_the_newest_kernels(vae, generator):
    x = torch.rand(4, 1, 8, 8, dtype=vae.dtype, generator=generator)
    with torch.no_grad():
        for layer in convolutions(vae):
            for raw in raw_of(layer):
                raw.add_(0.1 * torch.randn(raw.shape, generator=generator))
    before = vae.eval().encode(x).mean
    now = vae.train().encode(x).mean
    assert (before - now).abs().max() > 1e-3
    assert_close(vae.eval().encode(x).mean, now)


def test_checkpoint_reads_without_the_library(vae, tmp_path, request):
    images = rv.data.load("digits")[:64]
    rv.fit(vae, rv.objectives.ELBO(), images, epochs=1, generator=rv.generator(0), out=tmp_path)
    x = images.x[:4].to(vae.dtype)
    seen = vae.decode(vae.encode(x).mean).mean
    constants = lipschitz_constants(vae)
    request.getfixturevalue("no_library")
    again = checkpoint.load(tmp_path)
    assert_close(again.decode(again.encode(x).mean).mean, seen)
    assert lipschitz_constants(again) == constants
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(vae)
    with pytest.raises(errors.MissingExtraError, match="orthogonium"):
        again.train().encode(x)
    with pytest.raises(errors.MissingExtraError, match="orthogonium"):
        small().encode(x)


def test_same_seed_makes_same_kernels(vae):
    torch.rand(7)
    again = small()
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(vae)


def test_a_certificate_of_a_convolutional_model(vae, generator):
    x = torch.rand(2, 1, 8, 8, generator=generator)
    found = rv.certify(vae.to(x.dtype), x, 2.0, 0.5, "centered", generator=generator)
    assert found.kind == "deterministic" and (found.radius > 0.1).all()


def test_sorts_run_over_the_channels(generator):
    x = torch.randn(2, 4, 3, 3, generator=generator)
    y = nn.Sequential(MoveChannels(last=True), GroupSort(), MoveChannels(last=False))(x)
    assert_close(y, x.unflatten(1, (2, 2)).sort(2).values.flatten(1, 2))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"channels": [15]}, errors.ConfigError),
        ({"channels": [8]}, errors.ConfigError),
        ({"channels": []}, errors.ConfigError),
        ({"channels": [16, 16, 16, 16]}, errors.ShapeError),
        ({"image_shape": (1, 6, 8)}, errors.ShapeError),
        ({"channels": 16}, errors.DtypeError),
        ({"hidden": [15]}, errors.ConfigError),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(error):
        small(**options)


def test_channels_belong_to_convolutions():
    with pytest.raises(errors.ConfigError, match="conv"):
        rv.models.create("lipschitz-vae", channels=[16])
    with pytest.raises(errors.UnknownNameError):
        rv.models.create("lipschitz-vae", architecture="conv28")
