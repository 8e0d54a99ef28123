"""What is made of attacks that other attacks beat, and of the ends of climbs."""

from __future__ import annotations

import pytest
import torch

from robustvae.attacks.goals.base import distance
from robustvae.audit.checks.gradient_beats_gradient_free import GradientBeatsGradientFree
from robustvae.audit.checks.gradient_seen import GradientSeen
from robustvae.audit.rivals import compared
from robustvae.records import Case
from robustvae.robustness.displacement import Noise


def rows(role, **columns):
    return [
        {"input": i, "role": role, "goal": "g", "norm": "l2", "radius": 1.0, **columns}
        for i in range(4)
    ]


@pytest.mark.parametrize(("random", "passed"), [(True, False), (False, True)])
def test_fresh_numbers_count_for_random(random, passed):
    """An attack whose score holds on its own draws alone is beaten where draws are new."""
    both = rows("plan", score=3.0, damage=1.0) + rows("transfer", score=3.0, damage=2.0)
    assert compared(Case("v", both, {}, {}, random=random), ("transfer",), 0.1).passed is passed


@pytest.mark.parametrize(("beyond", "passed"), [(3.1, True), (2.9, False), (2.0, False)])
def test_lead_that_gradients_extend(beyond, passed):
    """Squares that beat gradients show masked ones, unless gradients go on from where they end."""
    three = rows("plan", score=1.0) + rows("gradient-free", score=2.0)
    case = Case("v", three + rows("explored", score=beyond), {}, {})
    assert GradientBeatsGradientFree()(case).passed is passed


@pytest.mark.parametrize(("hidden", "passed"), [(0, True), (8, True), (12, False)])
def test_gains_elsewhere_excuse_nothing(hidden, passed):
    """Climbs that gain where gradients see the way say nothing of inputs whose slope is hidden."""
    squares = [3.0] * 20 + [1.0] * 20
    climbs = [3.0] * hidden + [8.0] * (40 - hidden)
    scores = {"plan": [1.0] * 40, "gradient-free": squares, "explored": climbs}
    both = [
        {**rows(role)[0], "input": number, "score": score}
        for role, values in scores.items()
        for number, score in enumerate(values)
    ]
    assert GradientBeatsGradientFree()(Case("v", both, {}, {})).passed is passed


@pytest.mark.parametrize(("vanished", "passed"), [(2, True), (3, False)])
def test_climbs_that_end_on_plateaus(vanished, passed):
    points = [{"end": True, "vanished": i < vanished} for i in range(6)]
    points += [{"end": False, "vanished": True}] * 3
    plan = rows("plan", status="ok", zero_gradients=0.0)
    assert GradientSeen()(Case("v", plan, {"gradient": points}, {})).passed is passed


def test_slope_where_nothing_moved():
    """A climb that starts where rounding keeps the output has a direction to go in."""
    x = torch.full((2, 1, 3, 3), 0.3)
    y = x.clone().requires_grad_()
    rounded = y + ((4 * y).round() / 4 - y).detach()
    value = distance(rounded, rounded.detach())
    (slope,) = torch.autograd.grad(value.sum(), y)
    assert value.tolist() == [0.0, 0.0]
    torch.testing.assert_close(slope.flatten(1).norm(dim=1), torch.ones(2))


def test_parts_of_noise_go_round():
    noise = Noise(4, torch.arange(8).view(4, 2), None)
    assert noise.part(3, 2).moved.tolist() == [[6, 7], [0, 1]]
    assert noise.part(0, 4) is noise
