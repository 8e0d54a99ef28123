"""One shot against dense eigenvectors; the gradient-free searches against known maxima."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustvae import errors
from robustvae.perturb import Ball, OneShot, RandomSearch, SquareSearch, outward
from robustvae.seeding import generator, rand, randn

like = torch.zeros(0, dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return 0.3 + 0.4 * rand(3, 1, 4, 4, like=like, generator=generator(1))


def test_one_shot_is_the_dense_eigenvector(x):
    torch.random.default_generator.set_state(generator(3).get_state())
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    clean = net(x).detach()

    def score(y: Tensor, rows: Tensor) -> Tensor:
        return (net(y) - clean[rows]).square().sum(1)

    search = OneShot(count=3)
    found, spent, _ = search.directions(score, x, generator=generator(0))
    assert spent <= 32
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(net, x[i : i + 1]).view(5, 16)
        dense = torch.linalg.eigh(jacobian.mT @ jacobian).eigenvectors.flip(1)
        for k in range(3):
            assert abs(found[i, k].flatten() @ dense[:, k]) > 0.9999
    ball = Ball("l2", 0.1, None, None)
    result = search(score, x, ball, generator=generator(0))
    torch.testing.assert_close(ball.size(x, result.y), torch.full((3,), 0.1))
    both = torch.stack(
        [score(x + s * 0.1 * found[:, k], torch.arange(3)) for k in range(3) for s in (-1, 1)]
    )
    torch.testing.assert_close(result.score, both.amax(0))


def test_one_shot_reports_missing_curvature(x):
    for score in (
        lambda y, rows: y.detach().flatten(1).sum(1),
        lambda y, rows: y.flatten(1).sum(1),
    ):
        found = OneShot()(score, x, Ball("l2", 0.1), generator=generator(0))
        assert (found.gradient_norm == 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("search", [RandomSearch(steps=50), SquareSearch(steps=300, chunk=2)])
def test_gradient_free_searches_stay_inside(x, norm, search):
    w = randn(1, 4, 4, like=like, generator=generator(4))
    ball = Ball(norm, 0.1)

    def score(y: Tensor, rows: Tensor) -> Tensor:
        return ((y - x[rows]) * w).detach().flatten(1).sum(1)

    found = search(score, x, ball, generator=generator(0))
    assert ball.contains(x, found.y).all()
    assert found.gradient_norm.isnan().all()
    torch.testing.assert_close(score(found.y, torch.arange(3)), found.score)
    best = 0.1 * (w.norm() if norm == "l2" else w.abs().sum())
    least = 0.7 if isinstance(search, SquareSearch) else 0.2
    assert (found.score >= least * best).all()


def test_outward_noise_has_full_size():
    x = torch.full((5, 1, 8, 8), 0.5)
    for norm in ("l2", "linf"):
        ball = Ball(norm, 0.2)
        size = ball.size(x, outward(x, ball, generator=generator(0)))
        torch.testing.assert_close(size, torch.full((5,), 0.2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: OneShot(count=0),
        lambda: RandomSearch(steps=0),
        lambda: SquareSearch(share=1.5),
        lambda: SquareSearch(restarts=0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(errors.RangeError):
        make()
