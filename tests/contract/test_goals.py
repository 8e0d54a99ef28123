"""Every goal of the library reaches a planted optimum; one without evidence here fails."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustvae as rv
from robustvae.attacks.goals import Overflow, WeightedSum
from robustvae.testing import ContractError, check_goal, linear_vae, members_of, tiny_vae
from robustvae.testing.planted import gray_images

RADIUS = 0.1
BALL = rv.Ball("l2", RADIUS)
VAE, W, V = linear_vae()
X = gray_images(3)
TOP_CODE = float(torch.linalg.matrix_norm(W, 2)) * RADIUS
TOP_OUTPUT = float(torch.linalg.matrix_norm(V @ W, 2)) * RADIUS


def _classifier() -> nn.Linear:
    layer = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
        layer.bias.zero_()
    return layer


CASES = {
    # symmetric KL of equal spreads: |shift|^2 / (2 sigma^2), sigma = 0.1
    "latent-shift": (rv.LatentShift(), TOP_CODE**2 / (2 * 0.1**2)),
    "maximum-damage": (rv.MaximumDamage(), TOP_OUTPUT),
    "weighted-sum": (WeightedSum((rv.MaximumDamage(),), (2.0,)), 2 * TOP_OUTPUT),
    "encoder-target": (rv.EncoderTarget(), TOP_CODE**2),
    # no closed form: beats every random point
    "anomaly-score": (rv.AnomalyScore(), None),
    "layer-shift": (rv.attacks.LayerShift(times="output"), None),
    "metric-drop": (rv.MetricDrop("psnr"), None),
    "overflow": (Overflow(), None),
    "bit-rate": (rv.BitRate(step=0.01), None),
    "latent-target": (rv.LatentTarget(X.flip(0) + 0.2), None),
    "output-target": (rv.OutputTarget(X.flip(0) + 0.2), None),
    "classifier-flip": (rv.ClassifierFlip(), None),
}


def test_every_goal_has_evidence():
    assert set(CASES) == members_of("robustvae", "goal")


@pytest.mark.parametrize("name", sorted(CASES))
def test_goal_keeps_its_contract(name):
    goal, optimum = CASES[name]
    # layers belong to modules: the planted functions have none
    vae = tiny_vae() if name in ("layer-shift", "overflow") else VAE
    victim = rv.Victim(vae, classifier=_classifier())
    check_goal(goal, victim, X, BALL, optimum)


class Downhill:
    """A goal whose gradient has the wrong sign."""

    def bind(self, victim, x, *, generator):
        score = rv.MaximumDamage().bind(victim, x, generator=generator)

        def wrong(y, rows):
            value = score(y, rows)
            return 2 * value.detach() - value

        return wrong


class Crowd:
    """A goal that scores a row by its neighbors."""

    def bind(self, victim, x, *, generator):
        score = rv.MaximumDamage().bind(victim, x, generator=generator)
        return lambda y, rows: score(y, rows) - score(y, rows).mean()


@pytest.mark.parametrize(("goal", "says"), [(Downhill(), "differences"), (Crowd(), "other rows")])
def test_broken_goals_are_named(goal, says):
    with pytest.raises(ContractError, match=says):
        check_goal(goal, rv.Victim(VAE), X, BALL, TOP_OUTPUT)
