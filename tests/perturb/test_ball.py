"""The ball: membership, idempotence and the nearest point against a slow oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import robustvae.errors as errors
from robustvae.perturb import Ball
from robustvae.seeding import generator, rand, randn

like = torch.zeros(0, dtype=torch.float64)
norms = st.sampled_from(["l2", "linf"])
radii = st.floats(1e-3, 8.0)
seeds = st.integers(0, 2**31)


def points(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    x = rand(4, 1, 3, 3, like=like, generator=g)
    x[0], x[1] = x[0].round(), 0.0  # corners of the box, where every cap is 0 or 1
    scale = 10.0 ** randn(4, 1, 1, 1, like=like, generator=g)
    y = x + scale * randn(4, 1, 3, 3, like=like, generator=g)
    return x.to(dtype), y.to(dtype)


@given(norms, radii, seeds, st.booleans(), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=150, deadline=None)
def test_projection_inside_and_stays_where(norm, radius, seed, box, dtype):
    box = (0.0, 1.0) if box else (None, None)
    ball = Ball(norm, radius, *box)
    x, y = points(seed, dtype)
    inside = ball.project(x, y)
    assert inside.dtype == dtype
    assert ball.contains(x, inside).all()
    torch.testing.assert_close(ball.project(x, inside), inside, atol=1e-6, rtol=1e-6)
    already = ball.contains(x, y, tol=0.0)
    torch.testing.assert_close(inside[already], y[already], atol=1e-6, rtol=0)


def by_bisection(ball: Ball, x: Tensor, y: Tensor) -> Tensor:
    """clip(x + tau (y - x)) at the greatest tau in [0, 1] inside the ball, by 200 halvings."""
    low, high = torch.zeros(len(x), 1, 1, 1), torch.ones(len(x), 1, 1, 1)
    for _ in range(200):
        middle = (low + high) / 2
        fits = (ball.size(x, ball.clip(x + middle * (y - x))) <= ball.radius).view(-1, 1, 1, 1)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    whole = (ball.size(x, ball.clip(y)) <= ball.radius).view(-1, 1, 1, 1)
    return torch.where(whole, ball.clip(y), ball.clip(x + low * (y - x)))


@given(radii, seeds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_l2_projection_is_bisected_one(radius, seed, box):
    ball = Ball("l2", radius) if box else Ball("l2", radius, None, None)
    x, y = points(seed)
    torch.testing.assert_close(ball.project(x, y), by_bisection(ball, x, y), atol=1e-7, rtol=1e-7)


@given(norms, radii, seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_projection_is_the_nearest_point(norm, radius, seed, box):
    """<y - p, q - p> <= 0 for every q of a convex set: the definition of the nearest point p."""
    ball = Ball(norm, radius) if box else Ball(norm, radius, None, None)
    x, y = points(seed)
    p = ball.project(x, y)
    g = generator(seed + 1)
    for _ in range(10):
        q = ball.sample(x, generator=g)
        angle = ((y - p) * (q - p)).flatten(1).sum(1)
        assert (angle <= 1e-7 * (1 + (y - p).flatten(1).norm(dim=1))).all()


def test_radii_belong_to_their_rows():
    x = torch.zeros(3, 1, 2, 2)
    ball = Ball("l2", torch.tensor([0.1, 0.5, 2.0]))
    y = ball.project(x, torch.full_like(x, 0.5))
    torch.testing.assert_close(ball.size(x, y), torch.tensor([0.1, 0.5, 1.0]))
    turned = ball.rows(torch.tensor([2, 2, 0]))
    torch.testing.assert_close(turned.radii(x), torch.tensor([2.0, 2.0, 0.1]))
    with pytest.raises(errors.ShapeError, match="each of 2 images, got 3"):
        ball.project(x[:2], x[:2])


def test_caps_of_different_sizes():
    x = torch.linspace(0, 1, 784).pow(6).view(1, 1, 28, 28)
    y = x + torch.linspace(-3, 5, 784).pow(3).view(1, 1, 28, 28)
    for radius in (0.01, 0.3, 3.0, 12.0):
        ball = Ball("l2", radius)
        near, oracle = ball.project(x, y), by_bisection(ball, x, y)
        torch.testing.assert_close(near, oracle, atol=1e-7, rtol=0)


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("far", [1e18, 1e25, 3e38])
def test_far_points_are_projected_to_edge(far, box):
    ball = Ball("l2", 0.5) if box else Ball("l2", 0.5, None, None)
    x, _ = points(0, torch.float32)
    y = x + far * randn(*x.shape, like=x, generator=generator(1)).sign()
    oracle = ball.project(x.double(), y.double())
    torch.testing.assert_close(ball.project(x, y).double(), oracle, atol=1e-6, rtol=0)
    assert (ball.size(x, ball.project(x, y)) > 0.49).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(norm, dtype):
    x = torch.zeros(1, 1, 2, 2, dtype=dtype)
    with pytest.raises(errors.DtypeError, match="float32 or float64"):
        Ball(norm, 0.1).project(x, x + 1)


def test_balls_equal_where_values():
    radii = torch.tensor([0.1, 0.5])
    one, same = Ball("l2", radii), Ball("l2", radii.clone())
    assert one == same and hash(one) == hash(same)
    assert one != Ball("l2", 2 * radii) and one != Ball("l2", radii[:1]) and one != Ball("l2", 0.1)
    assert one != one.free() and one != "ball" and Ball("l2", 1) == Ball("l2", 1.0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_samples_fill_the_ball(norm):
    x = torch.zeros(4000, 1, 1, 2)
    ball = Ball(norm, 2.0, None, None)
    size = ball.size(x, ball.sample(x, generator=generator(0))) / 2
    # uniform in 2 dimensions: size squared is uniform, in either norm
    assert size.max() <= 1
    assert abs(size.square().mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("l1", 1.0), errors.UnknownNameError),
        (("l2", 0.0), errors.RangeError),
        (("l2", -1.0), errors.RangeError),
        (("l2", float("nan")), errors.NonFiniteError),
        (("l2", float("inf")), errors.NonFiniteError),
        (("l2", "1"), errors.DtypeError),
        (("l2", torch.ones(2, 2)), errors.ShapeError),
        (("l2", torch.tensor([1.0, -1.0])), errors.RangeError),
        (("l2", 1.0, None), errors.RangeError),
        (("l2", 1.0, 1.0, 0.0), errors.RangeError),
    ],
)
def test_nonsense_is_refused(arguments, error):
    with pytest.raises(error):
        Ball(*arguments)
