"""The penalty sweep against scipy, its selection rule, and the area under its curve."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import Normal

from robustvae import errors
from robustvae.attacks import LatentTarget, OutputTarget, PenaltySweep, auddc, penalties
from robustvae.attacks import select_penalty as select
from robustvae.defenses import Victim
from robustvae.models import create, wrap
from robustvae.seeding import generator, rand, randn

like = torch.zeros(0, dtype=torch.float64)


def linear_victim() -> Victim:
    g = generator(2)
    w = randn(3, 16, like=like, generator=g) / 4
    v = randn(16, 3, like=like, generator=g) / 4
    return Victim(
        wrap(
            encode=lambda x: Normal(x.flatten(1) @ w.mT, 0.5),
            decode=lambda z: Normal((z @ v.mT).view(-1, 1, 4, 4), 1.0),
            latent=3,
            image_shape=(1, 4, 4),
        )
    )


@pytest.fixture
def x() -> Tensor:
    return rand(3, 1, 4, 4, like=like, generator=generator(1))


def test_the_paper_s_penalties():
    found = penalties()
    assert len(found) == 51 and found[0] == 0
    assert found[1] == pytest.approx(2.0**-20) and found[-1] == pytest.approx(2.0**20)


@pytest.mark.parametrize("make", [LatentTarget, OutputTarget])
def test_sweep_matches_scipy_on_quadratics(x, make):
    """A convex latent objective: one minimum, which both must find."""
    victim, goal = linear_victim(), make(x.flip(0))
    sweep = PenaltySweep(goal, weights=(0.0, 0.01, 0.1, 1.0, 100.0))
    found = sweep(victim, x, generator=generator(0))
    score = goal.bind(victim, x, generator=generator(0))
    for i in range(3):
        for k, weight in enumerate(found.penalties.tolist()):

            def objective(flat, i=i, weight=weight):
                y = torch.as_tensor(flat).view(1, 1, 4, 4).requires_grad_()
                size = (y - x[i]).flatten().norm()
                value = weight * size - score(y, torch.tensor([i]))[0]
                (slope,) = torch.autograd.grad(value, y)
                return float(value.detach()), slope.flatten().numpy()

            oracle = minimize(
                objective,
                x[i].flatten().numpy(),
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, 1.0)] * 16,
                options={"ftol": 1e-13, "gtol": 1e-9, "maxiter": 500},
            )
            scale = max(abs(oracle.fun), 1e-3)
            assert float(found.objective[i, k]) <= oracle.fun + 1e-4 * scale
    assert (found.size[:, :-1] >= found.size[:, 1:] - 1e-6).all()
    assert (found.size[:, -1] < 1e-6).all()
    assert ((found.x_adv >= 0) & (found.x_adv <= 1)).all()
    torch.testing.assert_close(found.score[:, 2], score(found.x_adv[:, 2], torch.arange(3)))


def test_sweep_matches_scipy_on_network(x):
    """Ours is at most 1e-4 of the value without attack above what scipy's L-BFGS-B ends with."""
    torch.random.default_generator.set_state(generator(5).get_state())
    vae = create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4), hidden=(8,)).double()
    with torch.no_grad():
        vae.mean_head.weight.mul_(30)  # codes several spreads apart, as a trained encoder's are
    victim = Victim(vae)
    x, target = x[:2], x[[2, 0]].flip(3)
    goal = LatentTarget(target)
    weights = (0.0, *(2.0**power for power in range(-11, 7, 2)))
    found = PenaltySweep(goal, weights=weights)(victim, x, generator=generator(0))
    score = goal.bind(victim, x, generator=generator(0))
    rest = -score(x, torch.arange(2)).detach()
    assert found.objective.numel() == 20
    for i in range(2):
        for k, weight in enumerate(weights):

            def objective(flat, i=i, weight=weight):
                y = torch.as_tensor(flat).view(1, 1, 4, 4).requires_grad_()
                value = weight * (y - x[i]).flatten().norm() - score(y, torch.tensor([i]))[0]
                (slope,) = torch.autograd.grad(value, y)
                return float(value.detach()), slope.flatten().numpy()

            start, bounds = x[i].flatten().numpy(), [(0.0, 1.0)] * 16
            oracle = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
            assert float(found.objective[i, k]) <= oracle.fun + 1e-4 * rest[i]
    assert (found.size[:, :-1] >= found.size[:, 1:] - 1e-9).all()
    assert (found.size[:, 0] > 0).all()


def test_large_penalties_keep_the_input(x):
    """Where the penalty outweighs the slope at x in every open direction, x is the minimum."""
    victim, goal = linear_victim(), LatentTarget(x.flip(0))
    x = x.clone()
    x[:, :, 0] = 0.0
    at = x.clone().requires_grad_()
    score = goal.bind(victim, x, generator=generator(0))
    (slope,) = torch.autograd.grad(score(at, torch.arange(3)).sum(), at)
    open_ways = torch.where((x == 0) & (slope < 0), 0, slope).flatten(1).norm(dim=1)
    for i in (0, 2):
        weights = (0.0, 0.99 * float(open_ways[i]), 1.01 * float(open_ways[i]))
        found = PenaltySweep(goal, weights=weights)(victim, x, generator=generator(0))
        assert found.evaluations[i, 1] > 1 and found.size[i, 1] > 1e-4
        assert found.evaluations[i, 2] == 1 and found.size[i, 2] == 0


def test_negligible_penalties_share_one_search(x):
    goal = LatentTarget(x.flip(0))
    weights = (0.0, 1e-9, 0.01)
    found = PenaltySweep(goal, weights=weights)(linear_victim(), x, generator=generator(0))
    assert (found.evaluations[0] > 0).tolist() == [True, False, True]
    torch.testing.assert_close(found.x_adv[:, 1], found.x_adv[:, 0])


def test_warm_starts_cost_fewer_evaluations_end(x):
    """A convex objective: one minimum from any start."""
    goal, weights = LatentTarget(x.flip(0)), penalties(24, -10.0, 2.0)
    warm, cold = (
        PenaltySweep(goal, weights=weights, warm=way)(linear_victim(), x, generator=generator(0))
        for way in (True, False)
    )
    rest = cold.objective.amax(1, keepdim=True)
    assert (warm.objective <= cold.objective + 1e-6 * rest).all()
    assert warm.evaluations.sum() < 0.9 * cold.evaluations.sum()
    assert warm.evaluations.max() <= 200


def test_weak_model_has_small_area(x):
    """All-powerful attacks leave no area, powerless ones leave all of it."""
    target, x_hat, target_hat = x.flip(0), x, x.flip(0)
    line = torch.linspace(0, 1, 11).view(1, -1, 1, 1, 1)
    x_adv = x.unsqueeze(1) + line * (target - x).unsqueeze(1)
    nothing = auddc(x, target, x_hat, target_hat, x_adv, x_hat.unsqueeze(1).expand_as(x_adv))
    picked = [0, 2]  # the middle image is its own target
    torch.testing.assert_close(nothing[picked], torch.ones(2))
    halfway = auddc(x, target, x_hat, target_hat, x_adv, x_adv)
    torch.testing.assert_close(halfway[picked], torch.full((2,), 0.5))
    gone = auddc(x, target, x_hat, target_hat, x_adv, target.unsqueeze(1).expand_as(x_adv))
    assert (gone[picked] < 1e-6).all()


def test_selection_breaks_ties_by_largest_penalty():
    weights = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])
    objective = torch.tensor([[0.0, 1.0, 3.0, 3.0, 4.0], [9.0, 2.0, 2.0, 2.0, 2.0]])
    # means 2.75 and 2; in the second row nothing lies above, so the largest at the mean is taken
    assert select(objective, weights).tolist() == [3, 4]
    with pytest.raises(errors.ShapeError):
        select(objective, weights[:3])


def test_sweep_on_network_lowers_what_minimizes(x):
    torch.random.default_generator.set_state(generator(5).get_state())
    vae = create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4), hidden=(8,)).double()
    goal = LatentTarget(x[:1])
    found = PenaltySweep(goal, weights=penalties(4), steps=50)(
        Victim(vae), x[1:], generator=generator(0)
    )
    score = goal.bind(Victim(vae), x[1:], generator=generator(0))
    start = -score(x[1:], torch.arange(2)).detach()
    assert (found.objective <= start.unsqueeze(1) + 1e-9).all()
    assert ((found.auddc >= 0) & (found.auddc <= 1)).all()


def test_nonsense_is_refused(x):
    with pytest.raises(errors.RangeError):
        PenaltySweep(LatentTarget(x), weights=(1.0,))
    with pytest.raises(errors.RangeError):
        PenaltySweep(LatentTarget(x), weights=(1.0, -1.0))
    with pytest.raises(errors.RangeError):
        penalties(1)
