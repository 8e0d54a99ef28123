"""The code-space attack on mode searches: legal, stronger than what it replaces, and honest."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import robustvae as rv
from robustvae.attacks import CodeSpace, Through
from robustvae.errors import RangeError, UnsupportedError
from robustvae.metrics import ms_ssim
from robustvae.registry import build
from robustvae.seeding import generator

BALL = rv.Ball("linf", 0.3)


@pytest.fixture(scope="module")
def victim():
    return rv.Victim(rv.load("digits-vae"), rv.RobustPosterior("linf", 0.3, steps=30))


@pytest.fixture(scope="module")
def x():
    return rv.data.load("digits", "test").x[:6].float()


def test_code_space_beats_ascent(victim, x):
    """The ascent on damage through the defense leaves more of the image standing."""
    goal = rv.MetricDrop(center="mean")
    strong = CodeSpace(steps=25, starts=3, tracked=8, unrolled=4)
    found = rv.Attack(goal, strong, BALL)(victim, x, generator=generator(0))
    weak = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=8, restarts=2), BALL)
    moved = weak(victim, x, generator=generator(0)).x_adv
    other = rv.Attack(goal, strong, BALL).score(victim, x, moved, generator=generator(0))
    assert BALL.contains(x, found.x_adv).all() and found.status == ("ok",) * 6
    assert found.score.mean() > other.mean() + 0.02
    with torch.no_grad():
        clean = victim.vae.decode(victim.vae.encode(x).mean).mean
        moved = victim.reconstruct(found.x_adv, generator=generator(5))
    similarity = ms_ssim(clean, moved.clamp(0, 1), variant="kuzina2022")
    torch.testing.assert_close(-found.score, similarity)


def test_rows_alone_are_attacked(victim, x):
    search = build("search", "code-space:steps=3,starts=2,tracked=2,unrolled=2")
    attack = rv.Attack(rv.MetricDrop(), search, rv.Ball("l2", 1.0))
    alone = attack(victim, x[:1], generator=generator(0))
    assert float(alone.size) <= 1.0 + 1e-6 and alone.score.isfinite().all()


def test_other_defenses_are_refused(victim, x):
    attack = rv.Attack(rv.MetricDrop(), CodeSpace(), BALL)
    with pytest.raises(UnsupportedError, match="looks for no mode"):
        attack(rv.Victim(victim.vae), x, generator=generator(0))
    with pytest.raises(UnsupportedError, match="use it in an Attack"):
        CodeSpace()(lambda y, rows: y, x, BALL, generator=generator(0))
    with pytest.raises(RangeError, match="steps"):
        CodeSpace(steps=0)


@pytest.mark.parametrize("gradient", ["transfer", "straight-through", "implicit"])
def test_stand_ins_find_what_victim_judges(victim, x, gradient):
    """What the stand-in led to is scored on the defended victim, and beats no attack at all."""
    search = Through("projected-ascent:steps=4,restarts=1", gradient=gradient)
    attack = rv.Attack(rv.MaximumDamage(), search, rv.Ball("linf", 0.3))
    found = attack(victim, x[:3], generator=generator(0))
    again = attack.score(victim, x[:3], found.x_adv, generator=generator(3))
    torch.testing.assert_close(found.score, again)
    assert (found.score > 0.1).all()


def test_stand_ins_refuse_what_they_cannot(victim, x):
    implicit = Through(gradient="implicit")
    attack = rv.Attack(rv.MaximumDamage(), implicit, BALL)
    with pytest.raises(UnsupportedError, match="looks for no mode"):
        attack(rv.Victim(victim.vae), x, generator=generator(0))


@pytest.mark.parametrize("size", [1, 5])
def test_code_space_row_keeps_to_itself(victim, size):
    """The same codes are tried for an input whatever its neighbors are."""
    x = rv.data.load("digits", "test").x[:10].double()
    double = rv.Victim(rv.load("digits-vae").double(), rv.RobustPosterior("linf", 0.3, steps=5))
    attack = rv.Attack(rv.MetricDrop(center="mean"), CodeSpace(4, 3, 2, 2), BALL)

    def scores(size):
        rows = torch.arange(10).split(size)
        return torch.cat(
            [attack(double, x[r], generator=generator(0), rows=r.tolist()).score for r in rows]
        )

    torch.testing.assert_close(scores(size), scores(10), rtol=1e-6, atol=1e-8)


@dataclass(frozen=True)
class OwnSearch:
    """A user's mode search: the library's, under a class that the library does not know."""

    inner: rv.PosteriorMode = field(default_factory=lambda: rv.PosteriorMode(steps=20))

    def __call__(self, vae, x, *, generator):
        return self.inner(vae, x, generator=generator)

    def target(self, vae, x):
        return self.inner.target(vae, x)


@pytest.mark.parametrize("search", ["code-space:steps=4,starts=2", "through:gradient=implicit"])
def test_own_mode_searches_are_attacked(search):
    vae, x = rv.load("digits-vae"), rv.data.load("digits").x[:2]
    attack = rv.Attack(rv.MetricDrop(), build("search", search), BALL)
    scores = [
        attack(rv.Victim(vae, defense), x, generator=generator(0)).score
        for defense in (OwnSearch(), OwnSearch().inner)
    ]
    torch.testing.assert_close(*scores)
