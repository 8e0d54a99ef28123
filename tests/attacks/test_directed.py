"""Starts that are chosen, and slopes by differences: where random starts and gradients fail."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.attacks import Attack, DirectedAscent
from robustvae.errors import ShapeError, UnsupportedError
from robustvae.perturb import Ball, CentralDifferences, ProjectedAscent
from robustvae.registry import build
from robustvae.seeding import generator
from robustvae.testing import linear_vae
from robustvae.testing.planted import gray_images


@pytest.fixture(scope="module")
def digits():
    return rv.data.load("digits", "test").x[:6].double()


@pytest.fixture(scope="module")
def victim():
    return rv.Victim(rv.load("digits-vae").double())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_directed_starts_never_lose(victim, digits, norm):
    ball = Ball(norm, 1.0 if norm == "l2" else 0.1)

    def score(count):
        search = DirectedAscent(ProjectedAscent(steps=3, restarts=count))
        return Attack(rv.LatentShift(), search, ball)(victim, digits, generator=generator(0)).score

    scores = [score(count) for count in (1, 2, 5)]
    assert (scores[1] >= scores[0] * (1 - 1e-9)).all() and (scores[2] >= scores[1] - 1e-9).all()


def test_eigenvector_start_is_optimal():
    """On a linear encoder the first start is the optimum of a latent shift already."""
    vae, w, _ = linear_vae()
    x = gray_images(3)
    search = DirectedAscent(ProjectedAscent(steps=1, restarts=1), towards="eigenvectors")
    attack = Attack(rv.LatentShift("means"), search, Ball("l2", 0.1))
    found = attack(rv.Victim(vae), x, generator=generator(0))
    best = (0.1 * float(torch.linalg.matrix_norm(w, 2))) ** 2
    torch.testing.assert_close(found.score, torch.full_like(found.score, best), rtol=1e-3, atol=0)


@pytest.mark.parametrize("towards", ["both", "images"])
def test_directed_rows_keep_to_themselves(victim, digits, towards):
    search = DirectedAscent(ProjectedAscent(steps=3, restarts=4), towards=towards)
    attack = Attack(rv.MaximumDamage(), search, Ball("l2", 1.0))
    whole = attack(victim, digits, generator=generator(0), rows=range(6))
    for row in (1, 5):
        part = attack(victim, digits[row : row + 1], generator=generator(0), rows=[row])
        torch.testing.assert_close(part.score, whole.score[row : row + 1], rtol=1e-6, atol=0)


def test_pool_gives_other_inputs(victim, digits):
    search = DirectedAscent(ProjectedAscent(steps=2, restarts=2), "images", digits.flip(0))
    attack = Attack(rv.MaximumDamage(), search, Ball("l2", 1.0))
    assert attack(victim, digits, generator=generator(0)).status == ("ok",) * 6
    other = DirectedAscent(towards="images", pool=torch.zeros(2, 1, 4, 4))
    with pytest.raises(ShapeError, match="pool"):
        Attack(rv.MaximumDamage(), other, Ball("l2", 1.0))(victim, digits, generator=generator(0))


def test_other_searches_take_no_starts(victim, digits):
    with pytest.raises(UnsupportedError, match="takes no starts"):
        build("search", "directed-ascent:search=lbfgs").aim(victim)
    with pytest.raises(UnsupportedError, match="use it in an Attack"):
        DirectedAscent()(None, digits, None, generator=None)


@pytest.mark.parametrize("lie", ["none", "flipped", "shuffled", "zero"])
def test_differences_see_through_lies(digits, lie):
    """A single start comes near what two by the true gradient reach, whatever the gradient says."""
    vae = rv.load("digits-vae").double()
    honest = Attack(rv.MaximumDamage(), ProjectedAscent(30, 2), Ball("l2", 1.0))
    best = honest(rv.Victim(vae), digits, generator=generator(0)).score
    order = torch.randperm(64, generator=generator(5))
    lies = {
        "none": lambda g: g,
        "flipped": torch.neg,
        "shuffled": lambda g: g.flatten(1)[:, order].view_as(g),
        "zero": torch.zeros_like,
    }

    class Lying:
        def __call__(self, vae, x, *, generator):
            inside = x.clone()
            if inside.requires_grad:
                inside.register_hook(lies[lie])
            return vae.encode(inside).mean

    search = CentralDifferences(steps=30, restarts=1)
    attack = Attack(rv.MaximumDamage(), search, Ball("l2", 1.0))
    found = attack(rv.Victim(vae, Lying()), digits, generator=generator(0))
    # one start may end at a lower hill: the mean is held closer than each row
    assert (found.score > 0.7 * best).all() and found.score.mean() > 0.9 * best.mean()
    assert found.status == ("ok",) * 6
