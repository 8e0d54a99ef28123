"""Climbs from where squares ended: where random starts lie flat."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.attacks import Attack
from robustvae.errors import UnknownNameError, UnsupportedError
from robustvae.perturb import Ball, ExploredAscent, ProjectedAscent, SquareSearch
from robustvae.registry import build
from robustvae.robustness import Budget
from robustvae.seeding import generator

ROOM = torch.full((3, 1, 12, 12), 0.5, dtype=torch.float64)


def flat_but_for_patches(y, rows):
    """A small slope everywhere, and a steep one beyond a change that hides a whole patch."""
    step = (y - ROOM[rows])[:, 0]
    patch = step[:, 3:7, 3:7].mean((1, 2))
    return 0.05 * step[:, :, 0].sum(1) + 20 * (patch - 0.15).relu()


def climbs(count=2, steps=15):
    return ExploredAscent(
        ProjectedAscent(steps=steps, restarts=count), SquareSearch(steps=40, share=0.2)
    )


def test_squares_lead_into_valleys():
    """Random starts climb the small slope; what squares found ends at the steep one's optimum."""
    ball = Ball("l2", 1.2)
    random = ProjectedAscent(steps=30, restarts=4)(
        flat_but_for_patches, ROOM, ball, generator=generator(0)
    )
    found = climbs()(flat_but_for_patches, ROOM, ball, generator=generator(0))
    # the whole ball spent on the patch: a mean of 1.2 / 4
    best = 20 * (1.2 / 4 - 0.15)
    assert (random.score < 0.3).all()
    assert (found.score > 0.95 * best).all() and (found.score < 1.01 * best).all()
    assert ball.contains(ROOM, found.y).all()
    # a start's squares, and its ascent with the point where it begins
    assert found.queries.tolist() == [2 * (41 + 16)] * 3


def test_more_explored_starts_never_lose():
    scores = [
        climbs(count, 4)(flat_but_for_patches, ROOM, Ball("l2", 1.2), generator=generator(3)).score
        for count in (1, 2, 4)
    ]
    assert (scores[1] >= scores[0]).all() and (scores[2] >= scores[1]).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_explored_rows_keep_to_themselves(norm):
    x = rv.data.load("digits", "test").x[:4].double()
    victim = rv.Victim(rv.load("digits-vae").double())
    attack = Attack(rv.MaximumDamage(), climbs(2, 5), Ball(norm, 1.0 if norm == "l2" else 0.1))
    whole = attack(victim, x, generator=generator(0), rows=range(4))
    part = attack(victim, x[2:3], generator=generator(0), rows=[2])
    torch.testing.assert_close(part.score, whole.score[2:3], rtol=1e-6, atol=0)


def test_explored_needs_an_ascent():
    with pytest.raises(UnsupportedError, match="SquareSearch takes no starts"):
        ExploredAscent("square-search")
    with pytest.raises(UnknownNameError, match="squares"):
        build("search", "explored-ascent:explore=squares")


def test_margins_behind_a_plateau():
    """A model that mistakes whole patches only: walks from noise end far beyond its margin."""
    x = ROOM.float()

    def encode(y):
        patch = (y - 0.5)[:, 0, 3:7, 3:7].mean((1, 2)).abs()
        code = 0.02 * (y - 0.5)[:, 0, :, 0].sum(1) + 8 * (patch - 0.15).relu()
        return code.unsqueeze(1)

    def decode(z):
        return z.view(-1, 1, 1, 1).expand(-1, 1, 12, 12)

    vae = rv.wrap(encode=encode, decode=decode, image_shape=(1, 12, 12))
    victim = rv.Victim(vae)
    sizes = [
        rv.estimate_margin(
            victim, x, 6.0, 0.5, generator=generator(0), box=False, budget=Budget(explored=count)
        ).value
        for count in (0, 4)
    ]
    assert (sizes[1] < 0.7 * sizes[0]).all()
