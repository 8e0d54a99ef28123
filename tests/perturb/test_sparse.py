"""The l0 ball: few values change, each anywhere in the box."""

from __future__ import annotations

import itertools

import pytest
import torch

import robustvae as rv
from robustvae.errors import RangeError
from robustvae.perturb import RandomSearch, SquareSearch
from robustvae.seeding import generator, rand, randn

SEARCHES = {
    "ascent": (rv.ProjectedAscent(steps=20, restarts=4), 1.0),
    # a start seldom leaves the values that it began with
    "lbfgs": (rv.LBFGS(steps=20, restarts=4), 0.3),
    "one-shot": (rv.OneShot(), 0.8),
    "random": (RandomSearch(steps=200), 0.3),
    "squares": (SquareSearch(steps=400), 0.9),
    "universal": (rv.Universal(), 0.0),
}


def points(seed, spread=1.0):
    like = torch.zeros(0)
    x = rand(5, 1, 2, 3, like=like, generator=generator(seed))
    return x, x + spread * randn(*x.shape, like=x, generator=generator(seed + 1))


def nearest_by_trial(ball, x, y, count):
    """The nearest of all points that differ from x in one choice of `count` values."""
    inside, best = ball.clip(y), []
    for i in range(len(x)):
        options = []
        for places in itertools.combinations(range(6), count):
            flat = x[i].flatten().clone()
            flat[list(places)] = inside[i].flatten()[list(places)]
            options.append(flat)
        far = (torch.stack(options) - y[i].flatten()).norm(dim=1)
        best.append(far.min())
    return torch.stack(best)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("spread", [0.1, 1.0, 1e30])
def test_projection_is_nearest_sparse_point(count, spread):
    x, y = points(count, spread)
    ball = rv.Ball("l0", count)
    near = ball.project(x, y)
    assert bool(ball.contains(x, near, tol=0.0).all())
    assert torch.equal(ball.project(x, near), near)
    distance = (near - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, nearest_by_trial(ball, x, y, min(count, 6)))


def test_rows_have_their_own_counts():
    x = torch.zeros(3, 1, 2, 3)
    ball = rv.Ball("l0", torch.tensor([1.0, 3.0, 6.0]))
    for y in (ball.project(x, x + 1), ball.sample(x, generator=generator(0))):
        assert ball.size(x, y).tolist() == [1.0, 3.0, 6.0]


def test_uncounted_radii_are_refused():
    with pytest.raises(RangeError, match="whole number of values"):
        rv.Ball("l0", 1.5)
    with pytest.raises(RangeError, match="needs a box"):
        rv.Ball("l0", 2, None, None)
    with pytest.raises(RangeError, match="needs a box"):
        rv.Ball("l0", 2).free()


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_reach_sparse_optimum(name):
    search, share = SEARCHES[name]
    x = torch.full((3, 1, 4, 4), 0.5)
    slope = randn(*x.shape, like=x, generator=generator(11))

    def score(y, rows):
        return ((y - x[rows]) * slope[rows]).flatten(1).sum(1).square()

    ball = rv.Ball("l0", 3)
    result = search(score, x, ball, generator=generator(0))
    assert bool(ball.contains(x, result.y, tol=0.0).all())
    torch.testing.assert_close(score(result.y, torch.arange(3)), result.score)
    best = (0.5 * slope.abs().flatten(1).topk(3, dim=1).values.sum(1)).square()
    assert bool((result.score >= (share - 1e-6) * best).all()), result.score / best


COUNTS = rv.data.InputSpace((12,), high=20, discrete=True)


def of_counts():
    layers = torch.nn.ModuleDict(
        {"encoder": torch.nn.Linear(12, 4), "decoder": torch.nn.Linear(4, 12)}
    )
    return rv.wrap(
        encode=layers["encoder"],
        decode=lambda z: layers["decoder"](z),
        latent=4,
        image_shape=(12,),
        pixels=COUNTS,
    )


@pytest.mark.parametrize(("norm", "radius"), [("l0", 3), ("l2", 0.4), ("linf", 0.12)])
def test_attacked_counts_are_whole(norm, radius):
    vae = of_counts()
    x = COUNTS.to_images(torch.randint(0, 21, (4, 12), generator=generator(0)))
    ball = rv.Ball(norm, radius)
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(steps=10), ball)
    result = attack(rv.Victim(vae), x, generator=generator(0))
    counts = COUNTS.to_model(result.x_adv)
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    assert bool(ball.contains(x, result.x_adv).all())
    assert bool((result.score > 0).all()) and bool((result.size > 0).all())


def test_counts_carry_no_noise():
    vae = of_counts()
    x = COUNTS.to_images(torch.randint(0, 21, (2, 12), generator=generator(0)))
    victim = rv.Victim(vae, rv.InputNoise(stddev=0.25))
    calls = (
        lambda: victim.reconstruct(x, generator=generator(0)),
        lambda: rv.certified_curve(victim, x, sizes=[0.1], m=0.5, generator=generator(0)),
    )
    for call in calls:
        with pytest.raises(rv.errors.UnsupportedError, match=r"counts.*l0"):
            call()
    certificate = rv.certify(
        victim, x, r=1.0, m=0.5, displacement="full", methods=["smoothing"], generator=generator(0)
    )
    assert bool((certificate.radius == 0).all())
    assert "fractions of counts" in str(certificate.assumptions)
    with pytest.raises(rv.errors.UnsupportedError, match=r"counts lie apart.*l0"):
        rv.estimate_margin(rv.Victim(vae), x, 1.0, 0.5, "full", generator=generator(0))


def test_counts_are_audited_in_l0():
    vae = of_counts()
    counts = torch.randint(0, 21, (8, 12), generator=generator(0))
    images = rv.data.from_tensor(counts, space=COUNTS)
    plan = {"base": "smoke", "inputs": 3, "attacks": [{"norm": "l0", "radius": 2}]}
    record = rv.audit(vae, images, plan, question={"r": 0.5})
    sizes = {row["size"] for row in record.rows}
    assert sizes <= {1.0, 2.0}
    assert any("margin" in entry.stage and "l0" in entry.reason for entry in record.left_out)
