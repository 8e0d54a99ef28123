"""Every search of the library reaches a planted optimum inside its ball."""

from __future__ import annotations

import dataclasses

import pytest

import robustvae as rv
from robustvae.perturb import (
    CentralDifferences,
    ExploredAscent,
    Masked,
    RandomSearch,
    SearchResult,
    SquareSearch,
)
from robustvae.testing import ContractError, check_search, members_of

BOTH = ("l2", "linf")
# a gradient-free search reaches less of the optimum in 16 dimensions
CASES = {
    "projected-ascent": (rv.ProjectedAscent(steps=60, restarts=4), 0.99, BOTH),
    "lbfgs": (rv.LBFGS(restarts=2), 0.99, BOTH),
    "one-shot": (rv.OneShot(), 0.9, ("l2",)),
    "central-differences": (CentralDifferences(steps=30), 0.9, BOTH),
    "random-search": (RandomSearch(steps=200), 0.1, BOTH),
    # one change for all rows, whose slopes point elsewhere
    "universal": (rv.Universal(), 0.0, BOTH),
    "explored-ascent": (ExploredAscent("projected-ascent:steps=60,restarts=2"), 0.99, BOTH),
    "square-search": (SquareSearch(steps=400), 0.5, BOTH),
    "masked": (Masked(rv.ProjectedAscent(steps=60, restarts=4)), 0.99, BOTH),
}


# searches that look at the victim have their evidence in tests/attacks
AIMED = {"code-space", "directed-ascent", "through"}


def test_every_search_has_evidence():
    assert set(CASES) | AIMED == members_of("robustvae", "search")


@pytest.mark.parametrize("name", sorted(CASES))
def test_search_keeps_its_contract(name):
    search, share, norms = CASES[name]
    check_search(search, share=share, norms=norms)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A search with one planted fault."""

    fault: str

    def __call__(self, score, x, ball, *, generator):
        result = rv.ProjectedAscent(steps=60, restarts=4)(score, x, ball, generator=generator)
        y = x + 3 * (result.y - x) if self.fault == "outside" else result.y
        value = 2 * result.score if self.fault == "boast" else result.score
        if self.fault == "lazy":
            y, value = x.clone(), 0 * value
        return SearchResult(y, value, result.gradient_norm, result.zero_gradients, result.queries)


@pytest.mark.parametrize(
    ("fault", "says"), [("outside", "leaves"), ("boast", "scores"), ("lazy", "reaches")]
)
def test_broken_searches_are_named(fault, says):
    with pytest.raises(ContractError, match=says):
        check_search(Broken(fault), share=0.9)
