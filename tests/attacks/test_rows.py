"""A row of an attack is the same alone, in any batch and in any order."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.attacks import Attack, LatentShift, MaximumDamage
from robustvae.models import create
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import generator, rand

DEFENSES = {
    "none": rv.PosteriorMean(),
    "sample": rv.PosteriorSample(),
    "hmc": rv.HMC(steps=2, n_leapfrog=2, chunk=7),
    "mode": rv.RobustPosterior(steps=5),
}


@pytest.fixture(scope="module")
def vae():
    torch.random.default_generator.set_state(generator(5).get_state())
    return create("vae", architecture="mlp", latent=3, image_shape=(1, 6, 6), hidden=(24,)).double()


@pytest.mark.parametrize("goal", [MaximumDamage(draws=2), LatentShift("samples", draws=2)])
@pytest.mark.parametrize("name", DEFENSES)
def test_score_does_not_depend_on_batch(vae, goal, name):
    x = rand(20, 1, 6, 6, like=torch.zeros(0, dtype=torch.float64), generator=generator(1))
    victim = rv.Victim(vae, DEFENSES[name])
    attack = Attack(goal, ProjectedAscent(steps=3, restarts=2), Ball("linf", 0.1))

    def scores(order: torch.Tensor, size: int) -> torch.Tensor:
        """Scores of the inputs in the order of the data set, attacked in `order`."""
        parts = [
            attack(victim, x[part], generator=generator(4), rows=part.tolist()).score
            for part in order.split(size)
        ]
        return torch.cat(parts)[order.argsort()]

    whole = scores(torch.arange(20), 20)
    few = torch.arange(20)[:6]
    alone = torch.cat([scores(few, 1)[:6]])
    torch.testing.assert_close(scores(torch.arange(20), 5), whole, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(scores(torch.arange(19, -1, -1), 20), whole, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(alone, whole[:6], rtol=1e-6, atol=1e-9)


def test_row_numbers_decide_starts(vae):
    x = rand(2, 1, 6, 6, like=torch.zeros(0, dtype=torch.float64), generator=generator(1))
    attack = Attack(MaximumDamage(), ProjectedAscent(steps=1, restarts=1), Ball("linf", 0.1))

    def ends(rows: list[int] | None) -> torch.Tensor:
        return attack(rv.Victim(vae), x, generator=generator(0), rows=rows).x_adv

    assert torch.equal(ends([3, 4]), ends([3, 4]))
    assert not torch.equal(ends([3, 4]), ends([4, 3]))
    assert torch.equal(ends(None), ends(None))


def test_more_restarts_never_lose(vae):
    x = rand(3, 1, 6, 6, like=torch.zeros(0, dtype=torch.float64), generator=generator(1))
    scores = [
        Attack(MaximumDamage(), ProjectedAscent(steps=4, restarts=n), Ball("l2", 0.4))(
            rv.Victim(vae), x, generator=generator(0)
        ).score
        for n in (1, 3, 8)
    ]
    assert (scores[1] >= scores[0] - 1e-9).all()
    assert (scores[2] >= scores[1] - 1e-9).all()
