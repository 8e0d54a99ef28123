"""Every defense of the library keeps the contract that plug-ins are held to."""

from __future__ import annotations

import pytest
import torch

import robustvae as rv
from robustvae import registry
from robustvae.testing import ContractError, check_defense, members_of

CASES = {
    "hmc": "hmc:steps=3,n_leapfrog=2",
    "input-noise": "input-noise:stddev=0.1",
    "langevin": "langevin:steps=3",
    "posterior-mean": "posterior-mean",
    "posterior-mode": "posterior-mode:steps=5",
    "posterior-sample": "posterior-sample",
    "refined": "refined:refine=(median:size=3)",
    "robust-posterior": "robust-posterior:steps=5",
}


def test_every_defense_has_evidence():
    assert set(CASES) == members_of("robustvae", "defense")


@pytest.mark.parametrize("name", sorted(CASES))
def test_defense_keeps_its_contract(name):
    # a mode search starts at the prior's mean, where the robust energy may have no slope yet
    differentiable = name != "robust-posterior"
    check_defense(registry.build("defense", CASES[name]), differentiable=differentiable)


def _detached(vae, x, *, generator):
    return rv.PosteriorMean()(vae, x, generator=generator).detach()


def _crowded(vae, x, *, generator):
    z = rv.PosteriorMean()(vae, x, generator=generator)
    return z - z.mean(0)


def _learning(vae, x, *, generator):
    with torch.no_grad():
        next(vae.parameters()).mul_(1.01)
    return rv.PosteriorMean()(vae, x, generator=generator)


def _priced(vae, x, *, generator):
    return rv.PosteriorMean()(vae, x, generator=generator)


_priced.cost = 1


@pytest.mark.parametrize(
    ("defense", "says"),
    [
        (_detached, "no gradient"),
        (_crowded, "other rows"),
        (_learning, "weights"),
        (_priced, "not a Cost"),
    ],
)
def test_broken_defenses_are_named(defense, says):
    with pytest.raises(ContractError, match=says):
        check_defense(defense)
