import pytest
import torch

from robustvae.errors import ShapeError
from robustvae.mcmc import ess, r_hat
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


def test_r_hat_sees_chains_that_disagree_or_drift(generator):
    draws = randn(400, 4, 3, like=torch.zeros(()), generator=generator)
    assert ((r_hat(draws) - 1).abs() < 0.05).all()
    apart = draws + torch.arange(4.0).view(1, 4, 1)
    assert (r_hat(apart) > 1.3).all()
    drifting = draws + torch.linspace(0, 4, 400).view(-1, 1, 1)
    assert (r_hat(drifting) > 1.2).all()


def test_refusals():
    with pytest.raises(ShapeError):
        ess(torch.zeros(3, 2))
    with pytest.raises(ShapeError):
        r_hat(torch.zeros(10))
