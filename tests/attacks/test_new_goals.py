"""Goals for reported numbers: what they climb, what they report, and that they arrive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.stats import norm

import robustvae as rv
from robustvae.metrics import ms_ssim
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.registry import build
from robustvae.seeding import generator
from robustvae.testing import linear_vae
from robustvae.testing.planted import gray_images

SEARCH = ProjectedAscent(steps=25, restarts=2)


@pytest.fixture(scope="module")
def digits():
    return rv.load("digits-vae"), rv.data.load("digits", "test").x[:6].float()


def test_metric_drop_beats_damage(digits):
    """Reported is minus the metric itself, and the goal made for it lowers it further."""
    vae, x = digits
    victim, ball = rv.Victim(vae), Ball("linf", 0.1)
    goal = rv.MetricDrop()
    result = rv.Attack(goal, SEARCH, ball)(victim, x, generator=generator(0))
    with torch.no_grad():
        clean, moved = (vae.decode(vae.encode(y).mean).mean for y in (x, result.x_adv))
    torch.testing.assert_close(-result.score, ms_ssim(clean, moved, variant="kuzina2022"))
    damage = rv.Attack(rv.MaximumDamage(), SEARCH, ball)
    found = damage(victim, x, generator=generator(0)).x_adv
    other = rv.Attack(goal, SEARCH, ball).score(victim, x, found, generator=generator(0))
    assert result.score.mean() > other.mean() + 0.02


def test_metric_drop_has_slope_at_zero(digits):
    """Where the metric is cut off at 0 its stand-in still points somewhere."""
    vae, x = digits
    victim = rv.Victim(vae)
    y = (1 - x).clone().requires_grad_()
    rows = torch.arange(len(x))
    score = rv.MetricDrop().bind(victim, x, generator=generator(0))(y, rows)
    (slope,) = torch.autograd.grad(score.sum(), y)
    assert slope.isfinite().all() and (slope.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("raises", [True, False])
def test_anomaly_score_moves_as_told(digits, raises):
    vae, x = digits
    victim = rv.Victim(vae)
    goal = rv.AnomalyScore("anomaly-score:squared=true", raises=raises)
    result = rv.Attack(goal, SEARCH, Ball("l2", 1.0))(victim, x, generator=generator(0))
    clean, moved = (
        build("score", "anomaly-score:squared=true")(victim, y, generator=generator(1))
        for y in (x, result.x_adv)
    )
    assert ((moved > clean) if raises else (moved < clean)).all()
    torch.testing.assert_close(result.score, moved.detach() * (1 if raises else -1))


@dataclass(frozen=True)
class Steps:
    """A score in whole numbers: no gradient, so that another one must be climbed."""

    def __call__(self, victim, x, *, generator):
        return (20 * x.flatten(1).mean(1)).floor()


@dataclass(frozen=True)
class Level:
    """Brightness."""

    def __call__(self, victim, x, *, generator):
        return x.flatten(1).mean(1)


def test_reported_score_keeps_restarts():
    vae, _, _ = linear_vae()
    x = gray_images(2)
    goal = rv.AnomalyScore(Steps(), search=Level())
    result = rv.Attack(goal, SEARCH, Ball("linf", 0.2))(rv.Victim(vae), x, generator=generator(0))
    assert torch.equal(result.score, (20 * (x.flatten(1).mean(1) + 0.2)).floor())
    blind = rv.Attack(rv.AnomalyScore(Steps()), SEARCH, Ball("linf", 0.2))
    assert blind(rv.Victim(vae), x, generator=generator(0)).status == ("inconclusive",) * 2


def test_bits_are_the_priors_mass():
    vae, w, _ = linear_vae()
    x = gray_images(3)
    goal = rv.BitRate(step=0.5)
    bits = goal.report(rv.Victim(vae), x, generator=generator(0))(x, torch.arange(3))
    code = 0.5 * ((x.flatten(1) @ w.mT) / 0.5).round()
    mass = norm.cdf(code + 0.25) - norm.cdf(code - 0.25)
    torch.testing.assert_close(bits, -torch.as_tensor(mass).log2().sum(1))
    far = goal._bits(rv.Victim(vae), torch.full((1, 3), 30.0, dtype=torch.float64))
    assert far.isfinite().all() and far.item() > 3 * 0.5 * 29**2 / math.log(2)
    result = rv.Attack(goal, SEARCH, Ball("l2", 2.0))(rv.Victim(vae), x, generator=generator(0))
    assert (result.score > bits).all()


def test_encoder_target_reaches_target_code():
    """A target whose code lies within reach: the distance goes to 0."""
    vae, w, _ = linear_vae()
    x = gray_images(2)
    step = torch.linalg.svd(w).Vh[0].view(1, 1, 4, 4)
    goal = rv.EncoderTarget(x + 0.3 * step, scale=0.5)
    ball = Ball("l2", 0.5, None, None)
    result = rv.Attack(goal, SEARCH, ball)(rv.Victim(vae), x, generator=generator(0))
    start = goal.bind(rv.Victim(vae), x, generator=generator(0))(x, torch.arange(2))
    wanted = -4 * (0.3 * torch.linalg.matrix_norm(w, 2)).square().expand(2)
    torch.testing.assert_close(start, wanted)
    assert (result.score > 0.01 * start).all()
    refined = rv.EncoderTarget(after="threshold:level=0.5")
    kept = rv.Attack(refined, SEARCH, Ball("linf", 0.01, None, None))
    assert (kept(rv.Victim(vae), x, generator=generator(0)).score >= 0).all()


def test_universal_change_is_one():
    vae, w, v = linear_vae()
    x = gray_images(4)
    attack = rv.Attack(rv.MaximumDamage(), rv.Universal(), Ball("l2", 0.1))
    result = attack(rv.Victim(vae), x, generator=generator(0))
    change = result.x_adv - x
    torch.testing.assert_close(change, change[:1].expand_as(change), atol=1e-9, rtol=0.0)
    best = 0.1 * torch.linalg.matrix_norm(v @ w, 2)
    assert (result.score >= 0.99 * best).all()


def test_universal_change_knows_no_order():
    """One step from a drawn start: the same change whichever input comes first."""
    vae, _, _ = linear_vae()
    x = gray_images(3)
    attack = rv.Attack(rv.LatentShift(), rv.Universal(steps=1, restarts=2), Ball("l2", 0.1))
    one, two = (
        attack(rv.Victim(vae), part, generator=generator(0)).x_adv for part in (x, x.flip(0))
    )
    torch.testing.assert_close(one, two.flip(0), atol=1e-9, rtol=0.0)
