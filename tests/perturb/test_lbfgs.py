"""Batched L-BFGS against scipy's L-BFGS-B, problem by problem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from robustvae import errors
from robustvae.perturb import LBFGS, Ball, minimize
from robustvae.perturb.lbfgs import Schedule, Stopping, _Seats, _two_loop
from robustvae.seeding import generator, rand, randn

like = torch.zeros(0, dtype=torch.float64)
SIZE = 12


def problems(count: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bowls of condition number up to 1e4 with their lowest point half inside the box."""
    g = generator(0)
    q, _ = torch.linalg.qr(randn(count, SIZE, SIZE, like=like, generator=g))
    spectrum = 10 ** (4 * rand(count, SIZE, like=like, generator=g) - 2)
    hessian = q * spectrum.unsqueeze(1) @ q.mT
    lowest = 1.5 * randn(count, SIZE, like=like, generator=g)
    return hessian, lowest, -torch.ones(count, SIZE), torch.ones(count, SIZE)


def value_of(y: Tensor, hessian: Tensor, lowest: Tensor) -> Tensor:
    gap = y - lowest
    bowl = 0.5 * torch.einsum("ni,nij,nj->n", gap, hessian, gap)
    return bowl + torch.log1p(torch.exp(y.sum(1))) + 0.3 * y.norm(dim=1)


def test_it_matches_scipy_on_20_problems():
    hessian, lowest, low, high = problems()
    start = 0.5 * torch.ones(20, SIZE)
    calls: list[int] = []

    def objective(y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(rows))
        y = y.detach().requires_grad_()
        value = value_of(y, hessian[rows], lowest[rows])
        (gradient,) = torch.autograd.grad(value.sum(), y)
        return value.detach(), gradient

    found = minimize(
        objective, start, low, high, stopping=Stopping(steps=500, gradient_tolerance=1e-8)
    )
    assert found.converged.all()
    assert ((found.y >= low) & (found.y <= high)).all()
    assert sum(calls) == found.evaluations.sum()
    for i in range(20):

        def one(y: np.ndarray, i: int = i) -> tuple[float, np.ndarray]:
            value, gradient = objective(torch.as_tensor(y).unsqueeze(0), torch.tensor([i]))
            return float(value), gradient[0].numpy()

        bounds = [(-1.0, 1.0)] * SIZE
        options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9}
        oracle = scipy_minimize(
            one, start[i].numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        assert abs(float(found.value[i]) - oracle.fun) <= 1e-4 * abs(oracle.fun)
        torch.testing.assert_close(
            found.y[i], torch.as_tensor(oracle.x), atol=2e-3, rtol=0, check_dtype=False
        )


def test_rows_do_not_see_each_other():
    hessian, lowest, low, high = problems(6)

    def objective(y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        gap = y - lowest[rows]
        gradient = torch.einsum("nij,nj->ni", hessian[rows], gap)
        return 0.5 * (gap * gradient).sum(1), gradient

    start = torch.zeros(6, SIZE)
    whole = minimize(objective, start, low, high)
    for i in range(6):
        rows = torch.tensor([i])
        alone = minimize(
            lambda y, _, rows=rows: objective(y, rows), start[rows], low[rows], high[rows]
        )
        torch.testing.assert_close(alone.y[0], whole.y[i])
        assert alone.evaluations[0] == whole.evaluations[i]


def test_seats_and_chains_keep_results():
    hessian, lowest, low, high = problems(7)
    most, first = 0, {}

    def objective(y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal most
        most = max(most, len(rows))
        for row, point in zip(rows.tolist(), y, strict=True):
            first.setdefault(row, point.clone())
        gap = y - lowest[rows]
        gradient = torch.einsum("nij,nj->ni", hessian[rows], gap)
        return 0.5 * (gap * gradient).sum(1), gradient

    start = torch.zeros(7, SIZE)
    whole = minimize(objective, start, low, high)
    assert most == 7
    most = 0
    few = minimize(objective, start, low, high, schedule=Schedule(together=3))
    assert most == 3
    torch.testing.assert_close(few.y, whole.y)
    assert (few.evaluations == whole.evaluations).all()
    first.clear()
    after = torch.tensor([4, -1, 0, -1, -1, 1, -1])
    chained = minimize(objective, start, low, high, schedule=Schedule(together=3, after=after))
    for row, parent in enumerate(after.tolist()):
        torch.testing.assert_close(first[row], start[row] if parent < 0 else chained.y[parent])
    assert chained.converged.all()


def test_direction_is_textbook_s_recursion():
    """Nocedal & Wright, Algorithm 7.4, one row and one pair after the other."""
    rows, memory, g = 4, 3, generator(6)
    seats = _Seats.empty(rows, torch.zeros(rows, SIZE, dtype=like.dtype), memory)
    seats.newest.fill_(-1)
    history: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
    for turn in range(8):
        step = randn(rows, SIZE, like=like, generator=g)
        change = step * (0.1 + rand(rows, SIZE, like=like, generator=g))
        if turn == 5:
            change[2].neg_()  # curves downwards, so it is not kept
        which = torch.arange(rows) != turn % 5  # nor is a pair of a row that is left out
        for i in range(rows):
            if which[i] and step[i] @ change[i] > 0:
                history[i].append((step[i], change[i]))
        seats.free.copy_(rand(rows, SIZE, like=like, generator=g) > 0.3)
        seats.downhill.copy_(seats.free * randn(rows, SIZE, like=like, generator=g))
        seats.remember(which, step, change)
        found = _two_loop(seats)
        for i in range(rows):
            want, alphas = seats.downhill[i].clone(), []
            for s, y in reversed(history[i][-memory:]):
                alphas.append((s @ want) / (s @ y))
                want -= alphas[-1] * y
            if history[i]:
                s, y = history[i][-1]
                want *= (s @ y) / (y @ y)
            for s, y in history[i][-memory:]:
                want += (alphas.pop() - (y @ want) / (s @ y)) * s
            torch.testing.assert_close(found[i], want * seats.free[i])
        if turn == 3:
            seats.forget(torch.tensor([1]))
            history[1].clear()


def test_a_refused_step_teaches_the_curvature():
    """From 0 the first step goes to 1, twenty times too far; the second is Newton's."""

    def bowl(y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return 500 * (y - 0.05).square().sum(1), 1000 * (y - 0.05)

    found = minimize(bowl, torch.zeros(1, 1), -torch.ones(1, 1), torch.ones(1, 1))
    assert found.evaluations[0] == 3 and found.converged[0]
    torch.testing.assert_close(found.y[0], torch.tensor([0.05]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_search_finds_maximum_of_known_score(norm):
    x = 0.3 + 0.4 * rand(4, 1, 4, 4, like=like, generator=generator(1))
    w = torch.linspace(-1, 1, 16).view(1, 4, 4) + 0.01
    ball = Ball(norm, 0.05)

    def score(y: Tensor, rows: Tensor) -> Tensor:
        return (y * w).flatten(1).sum(1)

    found = LBFGS(restarts=2)(score, x, ball, generator=generator(0))
    best = 0.05 * (w.norm() if norm == "l2" else w.abs().sum())
    gained = found.score - score(x, torch.arange(4))
    assert ball.contains(x, found.y).all()
    assert (gained >= 0.99 * best).all()


def test_no_gradient_is_told():
    x = torch.full((2, 1, 2, 2), 0.5)
    found = LBFGS(restarts=2)(
        lambda y, rows: y.detach().flatten(1).sum(1), x, Ball("l2", 0.1), generator=generator(0)
    )
    assert (found.gradient_norm == 0).all() and (found.zero_gradients == 1).all()


def test_nonsense_is_refused():
    with pytest.raises(errors.RangeError):
        LBFGS(memory=0)
