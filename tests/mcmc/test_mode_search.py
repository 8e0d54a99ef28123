import pytest
import torch

from robustvae.errors import RangeError
from robustvae.mcmc import implicit, mode_search
from robustvae.seeding import randn


def test_it_finds_mode_of_every_row(generator):
    center = randn(5, 3, like=torch.zeros(()), generator=generator)
    mode = mode_search(lambda z: -(z - center).square().sum(1), torch.zeros(5, 3), steps=200)
    torch.testing.assert_close(mode.z, center, atol=1e-3, rtol=0)
    assert mode.gradients == 200


def test_it_never_ends_below_its_start(generator):
    def rugged(z):
        return (20 * z).sin().sum(1) - z.square().sum(1)

    start = randn(50, 3, like=torch.zeros(()), generator=generator)
    for steps in (1, 3, 20):
        mode = mode_search(rugged, start, steps=steps, rate=0.5)
        assert (mode.log_density >= rugged(start)).all()
        torch.testing.assert_close(mode.log_density, rugged(mode.z))


def test_each_evaluation_is_counted():
    calls = []

    def counted(z):
        calls.append(1)
        return -z.square().sum(1)

    assert mode_search(counted, torch.ones(2, 2), steps=9).gradients == len(calls) == 9


def test_bad_search_arguments_are_errors():
    with pytest.raises(RangeError):
        mode_search(lambda z: -z.square().sum(1), torch.zeros(1, 1), steps=0)
    with pytest.raises(RangeError):
        mode_search(lambda z: -z.square().sum(1), torch.zeros(1, 1), steps=1, rate=0)


def test_implicit_gradient_is_that_of_mode(generator):
    matrix = randn(4, 3, like=torch.zeros(()), generator=generator)
    direction = randn(5, 4, like=matrix, generator=generator)

    def mode(x, graph=False):
        def log_p(z):
            return -(torch.tanh(z @ matrix.mT) - x).square().sum(1) - 0.5 * z.square().sum(1)

        found = mode_search(log_p, torch.zeros(5, 3), steps=3000, rate=0.05).z
        return implicit(log_p, found) if graph else found

    x = 0.5 * randn(5, 4, like=matrix, generator=generator)
    leaf = x.clone().requires_grad_()
    weight = torch.tensor([1.0, -2.0, 0.5])
    (gradient,) = torch.autograd.grad((mode(leaf, graph=True) @ weight).sum(), leaf)
    numerical = (mode(x + 1e-3 * direction) - mode(x - 1e-3 * direction)) @ weight / 2e-3
    torch.testing.assert_close((gradient * direction).sum(1), numerical, atol=1e-4, rtol=1e-3)
