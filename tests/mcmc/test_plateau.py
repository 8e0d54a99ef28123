from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from robustvae.errors import RangeError
from robustvae.mcmc import Kernel, hmc_to_plateau
from robustvae.seeding import generator as seeded
from robustvae.seeding import randn


@dataclass(frozen=True)
class Normals:
    """One normal a row, of its own center; counts the rows it was asked about."""

    center: Tensor
    asked: list

    def __call__(self, z):
        self.asked.append(len(z))
        return -0.5 * (z - self.center).square().sum(1)

    def rows(self, index):
        return Normals(self.center[index], self.asked)


def far_and_near(count=100):
    center = torch.zeros(2 * count, 8)
    center[count:] = 12.0
    return Normals(center, [])


def test_chains_arrived_leave_others_go(generator):
    target = far_and_near()
    start = target.center.clone()
    start[100:] = 0
    found = hmc_to_plateau(
        target, start, Kernel(step_size=0.15, n_leapfrog=2), steps=200, generator=generator
    )
    assert found.settled.all()
    near, far = found.gradients[:100].double().mean(), found.gradients[100:].double().mean()
    assert near < 0.6 * far
    assert sum(target.asked) == found.gradients.sum()
    torch.testing.assert_close(found.log_density, target(found.z))


def test_those_that_left_are_near_target(generator):
    """The distance is that of draws of a standard normal in 8 dimensions, not of the start."""
    target = far_and_near()
    found = hmc_to_plateau(
        target, torch.zeros(200, 8), Kernel(step_size=0.3), steps=400, generator=generator
    )
    square = (found.z - target.center).square().sum(1)
    assert abs(square.mean() - 8) < 4 * square.std() / 200**0.5 + 0.4


def test_without_arrival_all_steps_are_run(generator):
    class Slope:
        def __call__(self, z):
            return 10 * z.sum(1)

        def rows(self, index):
            return self

    found = hmc_to_plateau(Slope(), torch.zeros(3, 2), steps=20, block=4, generator=generator)
    assert not found.settled.any()
    assert found.gradients.tolist() == [5 * (1 + 4 * 5)] * 3


def test_rows_come_back_in_their_order(generator):
    center = 50 * torch.arange(40.0).view(-1, 1).expand(-1, 3)
    found = hmc_to_plateau(
        Normals(center, []), center, Kernel(step_size=0.4), steps=60, generator=generator
    )
    assert len(found.gradients.unique()) > 1
    assert ((found.z - center).abs() < 10).all()


def test_end_differentiates_target_depends():
    direction = randn(6, 3, like=torch.zeros(()), generator=seeded(4))

    def last(center):
        start = 0.2 * center
        run = hmc_to_plateau(
            Normals(center, []),
            start,
            Kernel(step_size=0.3, graph=True),
            steps=40,
            generator=seeded(5),
        )
        return run.z.square().sum(), run.gradients

    center = torch.linspace(0, 4, 18).view(6, 3)
    leaf = center.clone().requires_grad_()
    value, counts = last(leaf)
    assert len(counts.unique()) > 1
    (gradient,) = torch.autograd.grad(value, leaf)
    numerical = (last(center + 1e-6 * direction)[0] - last(center - 1e-6 * direction)[0]) / 2e-6
    torch.testing.assert_close(
        (gradient * direction).sum(), numerical.detach(), rtol=1e-5, atol=1e-6
    )


def test_bad_plateau_arguments_are_errors(generator):
    with pytest.raises(RangeError):
        hmc_to_plateau(far_and_near(), torch.zeros(200, 8), steps=0, generator=generator)
    with pytest.raises(RangeError):
        hmc_to_plateau(far_and_near(), torch.zeros(200, 8), steps=5, block=0, generator=generator)
