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


def mistaken_patches(slope=0.02, steepness=8.0, least=0.15):
    """A victim that nothing moves much but a whole patch beyond a size."""

    def encode(y):
        patch = (y - 0.5)[:, 0, 3:7, 3:7].mean((1, 2)).abs()
        code = slope * (y - 0.5)[:, 0, :, 0].sum(1) + steepness * (patch - least).relu()
        return code.unsqueeze(1)

    def decode(z):
        return z.view(-1, 1, 1, 1).expand(-1, 1, 12, 12)

    return rv.Victim(rv.wrap(encode=encode, decode=decode, image_shape=(1, 12, 12)))


def changed_patch(size):
    y = ROOM.float()
    y[:, :, 3:7, 3:7] += size
    return y[None]


def test_margins_behind_a_plateau():
    """Walks from noise end far beyond the margin; those from squares do not."""
    sizes = [
        rv.estimate_margin(
            mistaken_patches(),
            ROOM.float(),
            6.0,
            0.5,
            generator=generator(0),
            box=False,
            budget=Budget(explored=count),
        ).value
        for count in (0, 4)
    ]
    assert (sizes[1] < 0.7 * sizes[0]).all()


@pytest.mark.parametrize("size", [0.22, 0.4, 1.2])
def test_known_change_behind_plateau(size):
    """A known failure bounds the margin by where it begins to fail, however far it lies."""
    found = rv.estimate_margin(
        mistaken_patches(),
        ROOM.float(),
        6.0,
        0.5,
        generator=generator(0),
        box=False,
        budget=Budget(starts=1, steps=1, explored=0),
        candidates=changed_patch(size),
    )
    # the output's 144 values move by the code: by 6 in all at a patch of 0.2125, whose norm is 0.85
    assert (found.value <= 1.03 * 0.85).all() and (found.value >= 0.85 * (1 - 1e-4)).all()


def test_steep_rays_mislead_no_walk():
    """A change that fails far out looks near by its slope; what is nearer is still preferred."""
    # along the first column 6 is reached at a size of 0.6, by a patch of 0.2025 at one of 0.81
    victim = mistaken_patches(0.24, 200.0, 0.2)
    found = [
        rv.estimate_margin(
            victim, ROOM.float(), 6.0, 0.5, generator=generator(0), box=False, candidates=known
        ).value
        for known in (None, changed_patch(0.9))
    ]
    assert (found[1] <= 1.01 * found[0]).all() and (found[1] < 0.63).all()


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_input_itself_displaces_nothing(noise):
    """What an attack that never moved returns is no start, however its draws fall."""
    x = rv.data.load("digits", "test").x[:3]
    victim = rv.Victim(rv.load("digits-vae").to(x))
    budget = Budget(starts=3, steps=8, explored=2)
    alone = rv.estimate_margin(victim, x, 2.0, 0.5, generator=generator(0), budget=budget)
    still = (x + noise * torch.rand(x.shape, generator=generator(1)).to(x)).clamp(0, 1)
    known = torch.stack([still, alone.x_adv])
    both = rv.estimate_margin(
        victim, x, 2.0, 0.5, generator=generator(0), budget=budget, candidates=known
    )
    assert alone.value.isfinite().all() and (both.value <= 1.02 * alone.value).all()
