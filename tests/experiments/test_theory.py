"""What the papers prove, as numbers: both readings of a theorem, and the terms of a bound."""

from __future__ import annotations

import pytest
import torch

from experiments.harness import load_items
from experiments.papers.khan2023.released import RELEASED
from experiments.papers.kuzina2022.lemmas import Spec, _metropolis

ITEMS = load_items()


def test_theorem_3_has_two_readings():
    result = ITEMS["barrett2022/theorem-3"].run(size="laptop")
    for k, stronger, literal in ((10, 0.0322, 0.0), (5, 0.2245, 0.1876)):
        for reading, value in (("stronger", stronger), ("literal", literal)):
            row = result.row(f"K = {k}", "sigma = 0.1", f"Theorem 3, {reading} reading")
            assert row.measured == pytest.approx(value, abs=1e-4)
    curves = result.values["tails"]["5"]
    assert curves["p1"] == sorted(curves["p1"]) and curves["p2"] == sorted(curves["p2"])


@pytest.fixture(scope="module")
def lemmas():
    torch.set_default_dtype(torch.float32)
    return ITEMS["kuzina2022/lemmas"].run()


def test_bound_of_lemma_2_holds(lemmas):
    broken = [row.measured for row in lemmas.rows if row.setting == "violations"]
    assert len(broken) == 6 and not any(broken)


def test_posterior_moves_at_second_order(lemmas):
    slope = next(row for row in lemmas.rows if row.setting == "slope")
    assert abs(slope.measured - 2) < 4 * slope.stderr


def test_chain_keeps_target_and_mass():
    spec, g = Spec(side=12, reach=2), torch.Generator().manual_seed(0)
    target = torch.randn(3, 144, generator=g, dtype=torch.float64).log_softmax(1)
    start = torch.rand(3, 144, generator=g, dtype=torch.float64)
    chain = start / start.sum(1, keepdim=True)
    assert torch.allclose(_metropolis(target.exp(), target, spec), target.exp(), atol=1e-12)
    far = (chain - target.exp()).abs().sum(1)
    for _ in range(200):
        chain = _metropolis(chain, target, spec)
    assert torch.allclose(chain.sum(1), torch.ones(3, dtype=torch.float64))
    assert ((chain - target.exp()).abs().sum(1) < 0.01 * far).all()


def test_released_numbers_are_a_hundred():
    assert len(RELEASED["radius"]) == len(RELEASED["entropy"]) == len(RELEASED["beta"]) == 50
    assert RELEASED["beta"] == sorted(RELEASED["beta"])
