"""The contracts that every member of this package keeps."""

import pytest
import torch
from robustvae_example.check import SomethingDarkened
from robustvae_example.defense import Rounded
from robustvae_example.goal import Darkening
from robustvae_example.measure import Brightness
from robustvae_example.model import LinearVAE
from robustvae_example.objective import PlainLoss
from robustvae_example.search import RandomWalk

import robustvae as rv
from robustvae.records import Case
from robustvae.testing import (
    check_check,
    check_defense,
    check_goal,
    check_measure,
    check_model,
    check_objective,
    check_search,
    check_source,
    linear_vae,
    members_of,
)

# What the tests below look at: a member without a test is named.
TESTED = {
    "goal": {"darkening"},
    "search": {"random-walk"},
    "defense": {"rounded"},
    "model": {"linear-vae"},
    "objective": {"plain-loss"},
    "data": {"stripes"},
    "measure": {"brightness"},
    "check": {"something_darkened"},
    "suite": {"dark"},
}


@pytest.mark.parametrize("family", TESTED)
def test_every_member_is_tested(family):
    assert members_of("robustvae-example", family) == TESTED[family]


def test_goal():
    vae, w, v = linear_vae()
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    # the mean pixel is linear in the input: the best step follows its gradient
    slope = (v @ w).mean(0)
    start = -rv.Victim(vae).reconstruct(x, generator=rv.generator(0)).flatten(1).mean(1)
    check_goal(Darkening(), rv.Victim(vae), x, rv.Ball("l2", 0.1), start + 0.1 * slope.norm())


def test_search():
    check_search(RandomWalk(steps=300), share=0.5)


def test_defense():
    check_defense(Rounded())


def test_model():
    torch.manual_seed(0)
    check_model(LinearVAE())


def test_objective():
    check_objective(PlainLoss())


def test_source():
    check_source(rv.data.load("stripes"))


def test_measure():
    check_measure(Brightness())


def test_check():
    dark, bright = (Case("a", [{"darkened": fall}], {}, {"r": 1.0}) for fall in (0.1, -0.1))
    check_check(SomethingDarkened(), dark, bright)


def test_suite():
    result = rv.AttackSuite("dark")(
        rv.Victim(rv.load("digits-vae")), torch.full((2, 1, 8, 8), 0.5), generator=rv.generator(0)
    )
    assert {row.name for row in result.rows if row.attack} >= {"darkening, ascent"}
