"""Inputs of many values: rounding of long sums may not carry a point out of its ball."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae.perturb.ascent import rows_that_fit
from robustvae.seeding import generator, rand, randn


@pytest.mark.parametrize("box", [(0.0, 1.0), (None, None)])
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_float32_points_stay_inside(box, scale):
    like = torch.zeros(0, dtype=torch.float32)
    x = rand(2, 3, 256, 256, like=like, generator=generator(0))
    y = x + scale * randn(*x.shape, like=like, generator=generator(1))
    ball = rv.Ball("l2", 1.0, *box)
    assert bool(ball.contains(x, ball.project(x, y)).all())


def test_large_inputs_go_in_smaller_chunks():
    seen = []

    def score(y, rows):
        seen.append(len(y))
        return y.flatten(1).sum(1)

    x = torch.full((2, 3, 200, 200), 0.5)
    search = rv.ProjectedAscent(steps=1, restarts=6)
    search(score, x, rv.Ball("l2", 0.1), generator=generator(0))
    assert max(seen) == 6 < rows_that_fit(x, 250) == 8
