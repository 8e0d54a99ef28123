"""Means over a random victim's draws: the same slope in the memory of one draw."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.attacks.goals import base


@pytest.mark.parametrize("target", [False, True])
def test_draws_one_by_one_equal_all(monkeypatch, target):
    victim = rv.Victim(rv.load("digits-vae"), rv.InputNoise(stddev=0.2))
    x = rv.data.load("digits", split="test")[:3].x
    goal = rv.OutputTarget(1 - x, draws=5) if target else rv.MaximumDamage(draws=5)
    score = goal.bind(victim, x, generator=rv.generator(0))
    rows = torch.tensor([2, 0, 1, 0])
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=x.dtype)
    results = []
    for most in (2**20, 1):
        monkeypatch.setattr(base, "VALUES_AT_ONCE", most)
        y = (x[rows] * 0.9).requires_grad_()
        value = score(y, rows)
        results.append((value.detach(), *torch.autograd.grad((weights * value).sum(), y)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert bool((results[0][1].flatten(1).norm(dim=1) > 0).all())


def test_early_slopes_have_no_second_ones(monkeypatch):
    monkeypatch.setattr(base, "VALUES_AT_ONCE", 1)
    victim = rv.Victim(rv.load("digits-vae"), rv.InputNoise(stddev=0.2))
    x = rv.data.load("digits", split="test")[:1].x
    score = rv.MaximumDamage(draws=2).bind(victim, x, generator=rv.generator(0))
    y = (0.9 * x).requires_grad_()
    (slope,) = torch.autograd.grad(score(y, torch.tensor([0])).sum(), y, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(slope.sum(), y)
