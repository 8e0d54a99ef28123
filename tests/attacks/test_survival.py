"""Attacks after storage, and sent in several times."""

from __future__ import annotations

import torch

import robustvae as rv
from robustvae.attacks import resubmissions, survival
from robustvae.seeding import generator


def test_rounding_keeps_most_damage():
    vae, x = rv.load("digits-vae"), rv.data.load("digits", "test").x[:5].float()
    victim = rv.Victim(vae)
    attack = rv.Attack(rv.MaximumDamage(), rv.ProjectedAscent(20, 2), rv.Ball("linf", 0.1))
    found = attack(victim, x, generator=generator(0))
    left = survival(attack, victim, x, found.x_adv, generator=generator(1))
    torch.testing.assert_close(left["as found"], found.score)
    assert (left["8 bits"] > 0.9 * found.score).all()
    assert not torch.equal(left["JPEG"], left["as found"])


def test_worst_resubmission_above_mean():
    """Each time another draw; alone the same as in the batch."""
    vae, x = rv.load("digits-vae"), rv.data.load("digits", "test").x[:4].float()
    attack = rv.Attack(rv.MaximumDamage(draws=1), rv.ProjectedAscent(2, 1), rv.Ball("l2", 0.5))
    victim = rv.Victim(vae, rv.PosteriorSample())
    y = (x + 0.1).clamp(0, 1)
    scores = resubmissions(attack, victim, x, y, generator=generator(0), times=8)
    assert (scores.amax(0) > scores.mean(0)).all() and len(scores.unique()) == 32
    alone = resubmissions(attack, victim, x[2:3], y[2:3], generator=generator(0), times=8)
    torch.testing.assert_close(alone[:, 0], scores[:, 2])
