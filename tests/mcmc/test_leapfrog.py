import numpy as np
import pytest
import torch

from robustvae.mcmc import evaluate, leapfrog, mass_matrix
from robustvae.seeding import randn


def quartic(z):
    """Neither Gaussian nor separable."""
    return -0.5 * z.square().sum(1) - 0.25 * z.square().sum(1).square() - 0.3 * z[:, 0] * z[:, 1]


def energy(state, momentum):
    return 0.5 * momentum.square().sum(1) - state.log_density


@pytest.fixture
def start(generator):
    like = torch.zeros(())
    return (
        randn(6, 3, like=like, generator=generator),
        randn(6, 3, like=like, generator=generator),
    )


def scales(generator):
    like = torch.zeros(())
    matrix = torch.eye(3) + 0.2 * randn(6, 3, 3, like=like, generator=generator)
    return {"identity": None, "diagonal": torch.tensor([0.5, 1.0, 2.0]), "matrix": matrix}


@pytest.mark.parametrize("kind", ["identity", "diagonal", "matrix"])
def test_energy_error_is_of_order_two(start, generator, kind):
    z, momentum = start
    scale = scales(generator)[kind]
    state = evaluate(quartic, z)
    errors, counts = [], [32, 64, 128, 256]
    for n in counts:
        end, thrown = leapfrog(
            quartic, state, momentum, step=0.5 / n, n_steps=n, mass=mass_matrix(scale)
        )
        errors.append((energy(end, thrown) - energy(state, momentum)).abs().mean().item())
    order = -np.polyfit(np.log2(counts), np.log2(errors), 1)[0]
    assert abs(order - 2) < 0.3


@pytest.mark.parametrize("kind", ["identity", "diagonal", "matrix"])
def test_turning_the_momentum_round_leads_back(start, generator, kind):
    z, momentum = start
    scale = scales(generator)[kind]
    state = evaluate(quartic, z)
    there, thrown = leapfrog(
        quartic, state, momentum, step=0.05, n_steps=20, mass=mass_matrix(scale)
    )
    assert (there.z - z).abs().max() > 0.1
    back, returned = leapfrog(
        quartic, there, -thrown, step=0.05, n_steps=20, mass=mass_matrix(scale)
    )
    torch.testing.assert_close(back.z, z, atol=1e-10, rtol=0)
    torch.testing.assert_close(returned, -momentum, atol=1e-10, rtol=0)


def test_volume_is_kept(start):
    z, momentum = start[0][:1], start[1][:1]

    def flow(phase):
        state = evaluate(quartic, phase[None, :3], graph=True)
        end, thrown = leapfrog(quartic, state, phase[None, 3:], step=0.2, n_steps=5, graph=True)
        return torch.cat([end.z, thrown], 1).squeeze(0)

    jacobian = torch.autograd.functional.jacobian(flow, torch.cat([z, momentum], 1).squeeze(0))
    assert abs(torch.linalg.det(jacobian).item() - 1) < 1e-9


def test_gradient_at_end_is_fresh(start):
    end, _ = leapfrog(quartic, evaluate(quartic, start[0]), start[1], step=0.1, n_steps=3)
    again = evaluate(quartic, end.z)
    torch.testing.assert_close(end.gradient, again.gradient)
    torch.testing.assert_close(end.log_density, again.log_density)


def test_no_graph_is_kept_unless_asked(start):
    center = torch.ones(3, requires_grad=True)
    end, thrown = leapfrog(
        lambda z: quartic(z - center),
        evaluate(lambda z: quartic(z - center), start[0]),
        start[1],
        step=0.1,
        n_steps=2,
    )
    assert not any(t.requires_grad for t in (end.z, end.log_density, end.gradient, thrown))
