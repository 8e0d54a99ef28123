"""Jacobians and spectra against their slow definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustvae.errors import RangeError, ShapeError, UnknownNameError
from robustvae.jacobians import jacobian, lanczos, power_iteration, products
from robustvae.seeding import generator, rand, randn

NUMBER = torch.float64


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5), nn.Sigmoid())


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, stride=2), nn.Flatten()
    )


def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.Softplus(), nn.Linear(20, 31))


def points(batch=7):
    return rand(batch, 1, 3, 4, like=torch.zeros(0, dtype=NUMBER), generator=generator(1))


def oracle(f, x):
    rows = [torch.func.jacrev(lambda one: f(one[None])[0].flatten())(one) for one in x]
    return torch.stack(rows).flatten(2)


@pytest.mark.parametrize("make", [dense, convolutional, wide])
@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
@pytest.mark.parametrize("batched", [False, True])
def test_jacobian_is_jacrev(make, mode, batched):
    f, x = make().to(NUMBER), points()
    found = jacobian(f, x, mode=mode, batched=batched, chunk=3)
    torch.testing.assert_close(found, oracle(f, x), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad and not x.requires_grad


def test_jacobian_under_no_grad_frozen_weights():
    f, x = dense().to(NUMBER).requires_grad_(False), points()
    with torch.no_grad():
        found = jacobian(f, x)
    torch.testing.assert_close(found, oracle(f, x))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_constant_part_has_jacobian_zero(mode, batched):
    x = points()
    constant = torch.ones(7, 2, dtype=NUMBER)
    assert not jacobian(lambda _: constant, x, mode=mode, batched=batched).any()
    both = jacobian(lambda y: torch.cat([y.flatten(1), constant], 1), x, mode=mode, batched=batched)
    torch.testing.assert_close(both[:, :12], torch.eye(12, dtype=NUMBER).expand(7, 12, 12))
    assert not both[:, 12:].any()


@pytest.mark.parametrize("make", [dense, convolutional, wide])
def test_products_are_the_dense_ones(make):
    f, x = make().to(NUMBER), points()
    at, full = products(f, x), oracle(f, x)
    v = randn(7, full.shape[2], like=full, generator=generator(2))
    u = randn(7, full.shape[1], like=full, generator=generator(3))
    torch.testing.assert_close(at.value, f(x).flatten(1).detach())
    for _ in range(2):
        torch.testing.assert_close(at.jvp(v), (full @ v[:, :, None])[:, :, 0])
        torch.testing.assert_close(at.vjp(u), (full.mT @ u[:, :, None])[:, :, 0])


def test_products_of_a_constant_are_zero():
    at = products(lambda y: torch.ones(7, 2, dtype=NUMBER), points())
    assert not at.jvp(torch.ones(7, 12, dtype=NUMBER)).any()
    assert not at.vjp(torch.ones(7, 2, dtype=NUMBER)).any()


def symmetric(n, spectrum):
    seeds = randn(4, n, n, like=torch.zeros(0, dtype=NUMBER), generator=generator(5))
    turn, _ = torch.linalg.qr(seeds)
    return turn @ torch.diag(torch.as_tensor(spectrum, dtype=NUMBER)) @ turn.mT


@pytest.mark.parametrize("steps", [None, 40])
def test_lanczos_finds_top_of_spectrum(steps):
    matrix = symmetric(40, [0.5**i for i in range(40)])
    top = lanczos(
        lambda v: (matrix @ v[:, :, None])[:, :, 0],
        matrix[:, 0],
        count=5,
        steps=steps,
        generator=generator(0),
    )
    values, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(top.values, values.flip(1)[:, :5], rtol=1e-10, atol=1e-12)
    cosine = (top.vectors * vectors.mT.flip(1)[:, :5]).sum(2).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert (top.residual < 1e-8).all()


def test_lanczos_residual_bounds_the_error():
    matrix = symmetric(60, torch.linspace(1, 2, 60))
    values = torch.linalg.eigvalsh(matrix)
    top = lanczos(
        lambda v: (matrix @ v[:, :, None])[:, :, 0],
        matrix[:, 0],
        count=3,
        steps=6,
        generator=generator(0),
    )
    nearest = (values[:, None] - top.values[:, :, None]).abs().amin(2)
    image = (matrix[:, None] @ top.vectors[..., None])[..., 0]
    true = (image - top.values[..., None] * top.vectors).norm(dim=2)
    torch.testing.assert_close(top.residual, true)
    assert (nearest <= top.residual + 1e-12).all()
    assert (top.residual > 1e-3).any()


def test_lanczos_goes_krylov_space_closes():
    matrix = symmetric(10, [3, 3, 3, 1, 1, 0, 0, 0, 0, 0])
    top = lanczos(
        lambda v: (matrix @ v[:, :, None])[:, :, 0],
        matrix[:, 0],
        count=6,
        steps=10,
        generator=generator(0),
    )
    wanted = torch.tensor([3.0, 3, 3, 1, 1, 0], dtype=NUMBER).expand(4, 6)
    torch.testing.assert_close(top.values, wanted, atol=1e-10, rtol=0)
    gram = top.vectors @ top.vectors.mT
    torch.testing.assert_close(gram, torch.eye(6, dtype=NUMBER).expand(4, 6, 6))


def test_lanczos_of_the_zero_operator():
    top = lanczos(torch.zeros_like, torch.zeros(2, 4), count=2, generator=generator(0))
    assert not top.values.any() and top.vectors.isfinite().all()


def test_power_iteration_finds_the_top():
    matrix = symmetric(12, [0.5**i for i in range(12)])
    top = power_iteration(
        lambda v: (matrix @ v[:, :, None])[:, :, 0],
        matrix[:, 0],
        steps=60,
        generator=generator(0),
    )
    torch.testing.assert_close(top.values[:, 0], torch.ones(4, dtype=NUMBER))
    assert (top.residual < 1e-8).all()


def test_bad_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="reverse"):
        jacobian(dense(), points(), mode="revers")
    with pytest.raises(ShapeError, match="rows"):
        jacobian(lambda x: x.flatten()[None], points())
    with pytest.raises(RangeError):
        jacobian(dense(), points(), chunk=0)
    with pytest.raises(RangeError, match="count"):
        lanczos(torch.zeros_like, torch.zeros(2, 4), count=5, generator=generator(0))
