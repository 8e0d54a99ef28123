"""Every check on the evidence passes for an honest attack and fails on the fault made for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from robustvae.attacks import LatentShift, MaximumDamage, evidence_checks
from robustvae.defenses import HMC, PosteriorMean, PosteriorMode, Victim
from robustvae.models import create
from robustvae.perturb import Ball, ProjectedAscent, SearchResult
from robustvae.seeding import generator, rand

like = torch.zeros(0, dtype=torch.float64)
SEARCH = ProjectedAscent(steps=50, restarts=8)


@pytest.fixture(scope="module")
def vae():
    torch.random.default_generator.set_state(generator(5).get_state())
    vae = create("vae", architecture="mlp", latent=3, image_shape=(1, 6, 6), hidden=(24,)).double()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(2.0)
    return vae


@pytest.fixture
def x() -> Tensor:
    return rand(4, 1, 6, 6, like=like, generator=generator(1))


def checks(vae, x, *, search=SEARCH, defense=None, goal=None, ball=None) -> dict[str, object]:
    found = evidence_checks(
        Victim(vae, defense or PosteriorMean()),
        x,
        goal=goal or MaximumDamage(),
        ball=ball or Ball("linf", 0.1),
        search=search,
        generator=generator(0),
    )
    assert all(check.meaning and check.value for check in found)
    return {check.id: check.passed for check in found}


@pytest.mark.parametrize("ball", [Ball("linf", 0.1), Ball("l2", 0.4)])
@pytest.mark.parametrize("goal", [MaximumDamage(), LatentShift()])
def test_an_honest_attack_passes(vae, x, ball, goal):
    found = checks(vae, x, ball=ball, goal=goal)
    assert len(found) == 9
    assert found.pop("adaptive_at_least_transfer") is None
    assert all(found.values()), found


def test_honest_attack_on_defense_passes(vae, x):
    found = checks(vae, x, defense=PosteriorMode(steps=15), ball=Ball("linf", 0.2))
    assert (
        found["adaptive_at_least_transfer"] and found["gradient_seen"] and found["score_recomputed"]
    )
    random = checks(
        vae, x, defense=HMC(steps=2, n_leapfrog=1), search=ProjectedAscent(steps=3, restarts=1)
    )
    assert random["score_recomputed"]  # each row keeps its own noise, in whatever order


def test_a_detached_sampler_fails(vae, x):
    def detached(vae, x, *, generator):
        return PosteriorMode(steps=15)(vae, x.detach(), generator=generator)

    found = checks(vae, x, defense=detached, ball=Ball("linf", 0.2))
    assert found["gradient_seen"] is False
    assert found["adaptive_at_least_transfer"] is False


@dataclasses.dataclass(frozen=True)
class Faulty:
    """An ascent with one fault."""

    fault: str
    steps: int = 20

    def __call__(self, score, x, ball, *, generator):
        search = ProjectedAscent(steps=self.steps, restarts=3)
        if self.fault == "descends":
            found = search(lambda y, r: -score(y, r), x, ball, generator=generator)
            return dataclasses.replace(found, score=-found.score)
        found = search(score, x, ball, generator=generator)
        if self.fault == "grows":
            return dataclasses.replace(found, y=x + 28 * (found.y - x))
        if self.fault == "boasts":
            return dataclasses.replace(found, score=2 * found.score)
        lost = ball.radii(x)[0] > 0.15  # the fault "lost": it sees small balls alone
        return SearchResult(
            x + 1e-3 * (found.y - x) if lost else found.y,
            found.score, found.gradient_norm, found.zero_gradients, found.queries,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("search", "name"),
    [
        (Faulty("grows"), "inside_ball"),
        (Faulty("boasts"), "score_recomputed"),
        (Faulty("lost"), "larger_radius_stronger"),
        (Faulty("lost"), "unbounded_attack_succeeds"),
        (Faulty("descends"), "beats_random_noise"),
        (Faulty("descends"), "gradient_beats_gradient_free"),
        (ProjectedAscent(steps=2, restarts=1, step=0.02), "longer_search_same"),
        (ProjectedAscent(steps=1, restarts=1, step=1e-4), "unbounded_attack_succeeds"),
    ],
)
def test_each_check_fails_on_its_fault(vae, x, search, name):
    assert checks(vae, x, search=search)[name] is False
