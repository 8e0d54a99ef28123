import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from robustvae.errors import RangeError
from robustvae.mcmc import gauss_newton, lbfgs, mode_search
from robustvae.seeding import randn


def rosenbrock(z):
    """Its mode (1, ..., 1) lies at the end of a bent ridge."""
    return -((1 - z[:, :-1]).square() + 20 * (z[:, 1:] - z[:, :-1].square()).square()).sum(1)


def curved(z):
    """Minus the Gauss-Newton matrix of `rosenbrock` as sums of squares, made row by row."""

    def residuals(row):
        return torch.cat([1 - row[:-1], math.sqrt(20) * (row[1:] - row[:-1].square())])

    slopes = torch.stack([torch.autograd.functional.jacobian(residuals, row) for row in z])
    return 2 * slopes.mT @ slopes


SEARCHES = {
    "lbfgs": lbfgs,
    "gauss-newton": lambda f, z, *, steps: gauss_newton(f, curved, z, steps=steps),
}


def starts(generator, rows=6, width=4):
    return 1.5 * randn(rows, width, like=torch.zeros(()), generator=generator)


@pytest.mark.parametrize("search", SEARCHES)
def test_newton_ends_bent_ridge_first(search, generator):
    z = starts(generator)
    steps = 150
    found = SEARCHES[search](rosenbrock, z, steps=steps)
    assert (found.log_density > -1e-9).sum() >= 4  # the others may climb another hill
    slow = mode_search(rosenbrock, z, steps=steps)
    assert slow.log_density.median() < found.log_density.median() - 0.01


@pytest.mark.parametrize("search", SEARCHES)
def test_it_never_ends_below_earlier_end(search, generator):
    def rugged(z):
        return (8 * z).sin().sum(1) - z.square().sum(1)

    def precision(z):
        return torch.eye(3).expand(len(z), -1, -1)

    z, before = starts(generator, 50, 3), None
    for steps in range(1, 12):
        if search == "lbfgs":
            found = lbfgs(rugged, z, steps=steps)
        else:
            found = gauss_newton(rugged, precision, z, steps=steps)
        torch.testing.assert_close(found.log_density, rugged(found.z))
        assert before is None or (found.log_density >= before).all()
        before = found.log_density
    assert (before > rugged(z) + 1).any()


def test_lbfgs_agrees_with_scipys(generator):
    """On smooth log-concave densities, whose mode is one: the oracle is run row by row."""
    matrix = randn(30, 8, like=torch.zeros(()), generator=generator)
    label = (randn(5, 30, like=matrix, generator=generator) > 0).double()

    def logistic(z, label=label):
        logits = z @ matrix.mT
        return (label * logits - torch.nn.functional.softplus(logits) - 0).sum(1) - 0.5 * (
            z.square().sum(1)
        )

    found = lbfgs(logistic, torch.zeros(5, 8), steps=60)
    for row in range(5):

        def loss(z, row=row):
            leaf = torch.tensor(z).requires_grad_()
            value = -logistic(leaf[None], label[row : row + 1]).sum()
            value.backward()
            return value.item(), leaf.grad.numpy()

        oracle = minimize(loss, np.zeros(8), jac=True, method="L-BFGS-B", tol=1e-12)
        torch.testing.assert_close(found.z[row], torch.tensor(oracle.x), atol=1e-6, rtol=0)


def test_gauss_newton_solves_quadratic_at_once(generator):
    z = starts(generator)
    factor = randn(6, 4, 4, like=z, generator=generator)
    matrix, center = factor @ factor.mT + torch.eye(4), starts(generator)

    def log_p(z):
        gap = (z - center).unsqueeze(2)
        return -0.5 * (gap.mT @ matrix @ gap).flatten()

    found = gauss_newton(log_p, lambda z: matrix, z, steps=2)
    torch.testing.assert_close(found.z, center)


@pytest.mark.parametrize("search", SEARCHES)
def test_rows_do_not_touch_each_other(search, generator):
    z = starts(generator)
    other = z.clone()
    other[0] += 3
    a, b = (SEARCHES[search](rosenbrock, start, steps=20).z for start in (z, other))
    torch.testing.assert_close(a[1:], b[1:], rtol=1e-9, atol=1e-9)
    assert not torch.equal(a[0], b[0])


@pytest.mark.parametrize("search", SEARCHES)
def test_each_evaluation_is_counted(search, generator):
    calls = []

    def counted(z):
        calls.append(1)
        return rosenbrock(z)

    found = SEARCHES[search](counted, starts(generator), steps=9)
    assert found.gradients == len(calls) == 9
    assert not found.z.requires_grad and not found.log_density.requires_grad


@pytest.mark.parametrize("search", SEARCHES)
def test_row_not_finite_stays_where(search):
    z = torch.ones(3, 4)
    z[1] = torch.nan
    z[2] = 1e200
    found = SEARCHES[search](rosenbrock, z, steps=10)
    assert found.z[1].isnan().all() and (found.z[2] == 1e200).all()
    assert (found.z[0] == 1).all()


def test_bad_newton_arguments_are_errors():
    for make in (
        lambda: lbfgs(rosenbrock, torch.zeros(1, 2), steps=0),
        lambda: lbfgs(rosenbrock, torch.zeros(1, 2), steps=1, memory=0),
        lambda: gauss_newton(rosenbrock, curved, torch.zeros(1, 2), steps=0),
    ):
        with pytest.raises(RangeError):
            make()
