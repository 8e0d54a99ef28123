"""Ascent on scores whose maximum is known, and what must not change it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from robustvae import errors
from robustvae.perturb import (
    LBFGS,
    Ball,
    OneShot,
    ProjectedAscent,
    RandomSearch,
    Score,
    SquareSearch,
)
from robustvae.seeding import generator, rand, randn

like = torch.zeros(0, dtype=torch.float64)
RULES = ("sign", "normalized", "adam")
SCHEDULES = ("constant", "linear", "plateau")


def quadratic(x: Tensor, seed: int = 0) -> tuple[Tensor, Score]:
    """A of known spectrum, and the score ||A (y - x)||, whose maximum is its first value."""
    g = generator(seed)
    pixels = x[0].numel()
    left, _ = torch.linalg.qr(randn(6, 6, like=like, generator=g))
    right, _ = torch.linalg.qr(randn(pixels, 6, like=like, generator=g))
    a = left * torch.tensor([3.0, 2.0, 1.5, 1.0, 0.5, 0.2], dtype=torch.float64) @ right.mT
    return a, lambda y, rows: ((y - x[rows]).flatten(1) @ a.mT).norm(dim=1)


@pytest.fixture
def x() -> Tensor:
    return 0.3 + 0.4 * rand(5, 1, 4, 4, like=like, generator=generator(1))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_l2_ascent_reaches_top_singular_value(x, schedule, momentum):
    _, score = quadratic(x)
    search = ProjectedAscent(steps=60, restarts=3, schedule=schedule, momentum=momentum)
    found = search(score, x, Ball("l2", 0.2), generator=generator(0))
    assert (found.score >= 0.99 * 3.0 * 0.2).all()
    assert (found.score <= 3.0 * 0.2 + 1e-9).all()


def furthest(a: Tensor, norm: str) -> Tensor:
    """The largest ||A d|| in the unit ball: by singular values, or over all corners of a cube."""
    if norm == "l2":
        return torch.linalg.matrix_norm(a, 2)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * a.shape[1])
    return (corners @ a.mT).norm(dim=1).max()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", [0, 1])
def test_ascent_finds_optimum_linear_encoder(norm, rule, momentum, schedule, seed):
    """In the default steps and restarts; the second encoder sees its pixels very unevenly."""
    g = generator(seed)
    a = randn(3, 10, like=like, generator=g) * 10 ** (
        -1.5 * seed * rand(10, like=like, generator=g)
    )
    x = rand(2, 1, 2, 5, like=like, generator=g)
    search = ProjectedAscent(rule=rule, schedule=schedule, momentum=momentum)
    ball = Ball(norm, 0.1, None, None)
    found = search(
        lambda y, rows: ((y - x[rows]).flatten(1) @ a.mT).square().sum(1),
        x,
        ball,
        generator=generator(seed),
    )
    assert (found.score.sqrt() >= 0.99 * 0.1 * furthest(a, norm)).all()
    assert (found.score.sqrt() <= 0.1 * furthest(a, norm) + 1e-9).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rule", RULES)
def test_ascent_finds_top_singular_direction_784(rule, schedule):
    """An encoder whose singular values lie close: in twice the default steps, from six starts."""
    g = generator(0)
    a = randn(32, 784, like=like, generator=g)
    x = rand(2, 1, 28, 28, like=like, generator=g)
    search = ProjectedAscent(steps=100, restarts=6, rule=rule, schedule=schedule)
    found = search(
        lambda y, rows: ((y - x[rows]).flatten(1) @ a.mT).norm(dim=1),
        x,
        Ball("l2", 1.0, None, None),
        generator=generator(0),
    )
    assert (found.score >= 0.99 * furthest(a, "l2")).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [True, False])
def test_ascent_raises_linear_score_maximum(x, norm, rule, schedule, box):
    """The maximum over ball and box is clip(x + t w), t as large as the ball allows."""
    w = torch.linspace(-1, 1, 16).view(1, 4, 4) + 0.01
    ball = Ball(norm, 1.2) if box else Ball(norm, 1.2, None, None)
    search = ProjectedAscent(rule=rule, schedule=schedule)
    found = search(lambda y, rows: (y * w).flatten(1).sum(1), x, ball, generator=generator(0))
    best = ball.project(x, x + 100 * (w if norm == "l2" else w.sign()).expand_as(x))
    assert ball.contains(x, found.y).all()
    assert ((best == 0) | (best == 1)).any() == box
    gained = found.score - (x * w).flatten(1).sum(1)
    assert (gained >= 0.99 * ((best - x) * w).flatten(1).sum(1)).all()


def test_chunks_and_company_change_nothing(x):
    _, score = quadratic(x)
    ball = Ball("linf", 0.1)
    whole = ProjectedAscent(steps=7, restarts=4)(score, x, ball, generator=generator(3))
    for chunk in (1, 3, 7, 1000):
        search = ProjectedAscent(steps=7, restarts=4, chunk=chunk)
        part = search(score, x, ball, generator=generator(3))
        torch.testing.assert_close(part.y, whole.y)
        torch.testing.assert_close(part.score, whole.score)
        assert torch.equal(part.queries, whole.queries)
    parts = []
    for i in (0, 1, 2, 3, 4):
        alone = ProjectedAscent(steps=7, restarts=4)
        parts.append(
            alone(
                lambda y, rows, i=i: score(y, rows + i),
                x[i : i + 1],
                ball,
                generator=generator(3),
            )
        )
    torch.testing.assert_close(torch.cat([part.y for part in parts]), whole.y)


def test_best_iterate_and_worst_restart_kept(x):
    seen: list[tuple[Tensor, Tensor]] = []

    def score(y: Tensor, rows: Tensor) -> Tensor:
        value = torch.sin(40 * y.flatten(1).sum(1))  # up and down along any path
        seen.append((rows, value.detach()))
        return value

    search = ProjectedAscent(steps=20, restarts=3, schedule="constant")
    found = search(score, x, Ball("l2", 1.0), generator=generator(0))
    rows, values = torch.cat([r for r, _ in seen]), torch.cat([v for _, v in seen])
    for i in range(len(x)):
        torch.testing.assert_close(found.score[i], values[rows == i].max())
        assert found.queries[i] == (rows == i).sum()
    torch.testing.assert_close(torch.sin(40 * found.y.flatten(1).sum(1)), found.score)


def test_rows_that_reach_the_target_leave(x):
    sizes: list[int] = []

    def score(y: Tensor, rows: Tensor) -> Tensor:
        sizes.append(len(y))
        return (y - x[rows]).flatten(1).sum(1) * (1 + rows)

    search = ProjectedAscent(steps=40, restarts=2, step=0.05, target=0.5, chunk=10)
    found = search(score, x, Ball("linf", 0.1, None, None), generator=generator(0))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]
    assert (found.score >= 0.5).all()
    assert found.queries[4] < found.queries[0]


def test_no_gradient_is_told(x):
    nothing = ProjectedAscent(steps=3, restarts=2)(
        lambda y, rows: (y.detach() - 0.5).flatten(1).sum(1), x, Ball("l2", 1.0),
        generator=generator(0),
    )  # fmt: skip
    assert (nothing.gradient_norm == 0).all()
    broken = ProjectedAscent(steps=3, restarts=2)(
        lambda y, rows: y.flatten(1).sum(1) * torch.nan, x, Ball("l2", 1.0), generator=generator(0)
    )
    assert (broken.score == -torch.inf).all()
    assert Ball("l2", 1.0).contains(x, broken.y).all()


def test_backs_off_when_memory_runs_out(x):
    _, score = quadratic(x)

    def greedy(y: Tensor, rows: Tensor) -> Tensor:
        if len(y) > 4:
            raise torch.OutOfMemoryError("too many rows")
        return score(y, rows)

    search = ProjectedAscent(steps=5, restarts=3)
    found = search(greedy, x, Ball("l2", 0.2), generator=generator(0))
    plain = search(score, x, Ball("l2", 0.2), generator=generator(0))
    torch.testing.assert_close(found.y, plain.y)

    def never(y: Tensor, rows: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("none at all")

    with pytest.raises(torch.OutOfMemoryError):
        search(never, x, Ball("l2", 0.2), generator=generator(0))


def test_each_input_has_its_own_radius(x):
    _, score = quadratic(x)
    radius = torch.tensor([0.05, 0.1, 0.15, 0.2, 0.25])
    search = ProjectedAscent(steps=60, restarts=3, chunk=4)
    found = search(score, x, Ball("l2", radius), generator=generator(0))
    assert (found.score >= 0.99 * 3.0 * radius).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"restarts": -1},
        {"steps": 1.5},
        {"step": 0.0},
        {"momentum": 1.0},
        {"rule": "sgn"},
        {"schedule": "cosine"},
        {"target": float("nan")},
    ],
)
def test_nonsense_is_refused(settings):
    with pytest.raises(errors.RobustVAEError):
        ProjectedAscent(**settings)


def test_more_restarts_never_lose(x):
    _, score = quadratic(x)
    ball = Ball("l2", 0.2)
    scores = [
        ProjectedAscent(steps=3, restarts=n)(score, x, ball, generator=generator(3)).score
        for n in (1, 2, 5, 13)
    ]
    for fewer, more in itertools.pairwise(scores):
        assert (more >= fewer - 1e-12).all()
    assert (scores[-1] > scores[0]).any()


SEARCHES = [
    ProjectedAscent(steps=5, restarts=3),
    LBFGS(steps=5, restarts=2),
    RandomSearch(steps=7),
    SquareSearch(steps=9, restarts=2),
    OneShot(),
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_rows_do_not_depend_on_batch(search, x):
    """The same row in a batch, in another order, and alone."""
    a, _ = quadratic(x)

    def curved(y: Tensor, rows: Tensor) -> Tensor:
        return ((y - 0.45).flatten(1) @ a.mT).square().sum(1)

    def look(part: Tensor) -> Tensor:
        return search(curved, part, Ball("l2", 0.2), generator=generator(3)).y

    whole = look(x)
    torch.testing.assert_close(look(x.flip(0)).flip(0), whole)
    torch.testing.assert_close(torch.cat([look(row) for row in x.split(1)]), whole)
