from dataclasses import replace

import pytest
import torch

from robustvae.errors import ShapeError
from robustvae.mcmc import FixedStep, Kernel, diagnose, ess, hmc, r_hat
from robustvae.seeding import generator as seeded
from robustvae.seeding import randn


def autoregressive(rho, length, chains, generator):
    noise = randn(length, chains, like=torch.zeros(()), generator=generator)
    values = [noise[0]]
    for shock in noise[1:]:
        values.append(rho * values[-1] + (1 - rho**2) ** 0.5 * shock)
    return torch.stack(values)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.5])
def test_effective_sample_size_of_an_autoregression(generator, rho):
    draws = autoregressive(rho, 4000, 50, generator)
    share = ess(draws) / 4000
    wanted = (1 - rho) / (1 + rho)
    assert abs(share.mean() / wanted - 1) < 0.1


def test_r_hat_detects_disagreeing_chains(generator):
    draws = randn(400, 4, 3, like=torch.zeros(()), generator=generator)
    assert ((r_hat(draws) - 1).abs() < 0.05).all()
    apart = draws + torch.arange(4.0).view(1, 4, 1)
    assert (r_hat(apart) > 1.3).all()
    drifting = draws + torch.linspace(0, 4, 400).view(-1, 1, 1)
    assert (r_hat(drifting) > 1.2).all()


def test_a_diagnosis_speaks_of_each_input(generator):
    """Three inputs, four chains each: well-behaved, two modes, too stiff for the step."""
    kind = torch.arange(3).repeat(4)

    def log_p(z):
        near = -0.5 * z.square().sum(1)
        modes = torch.logaddexp(-0.5 * (z - 20).square().sum(1), -0.5 * (z + 20).square().sum(1))
        return torch.where(kind == 0, near, torch.where(kind == 1, modes, 1e6 * near))

    start = torch.zeros(12, 2)
    start[:6] = 20 * (kind[:6] == 1).unsqueeze(1)
    start[6:] = -20 * (kind[6:] == 1).unsqueeze(1)
    start[kind == 2] = 1.0
    run = hmc(
        log_p,
        start,
        Kernel(step_size=0.7, jitter=0.2),
        steps=300,
        keep=True,
        generator=generator,
        adaptation=FixedStep(),
    )
    told = diagnose(run, chains=4)
    assert told.sound.tolist() == [True, False, False]
    assert told.r_hat[0] < 1.05 and told.r_hat[1] > 2
    assert told.divergences.tolist() == [0, 0, 1200]
    assert told.acceptance[2] == 0 and told.ess[0] > 100
    assert told.gradients == 4 * run.gradients


def test_bad_diagnostics_arguments_are_errors():
    run = hmc(
        lambda z: -z.square().sum(1), torch.zeros(6, 1), steps=9, generator=seeded(0), keep=True
    )
    with pytest.raises(ShapeError, match="copies"):
        diagnose(run, chains=4)
    with pytest.raises(ShapeError, match="keep"):
        diagnose(replace(run, draws=None), chains=2)
    with pytest.raises(ShapeError):
        ess(torch.zeros(3, 2))
    with pytest.raises(ShapeError):
        r_hat(torch.zeros(10))
