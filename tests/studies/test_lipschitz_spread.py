"""The study of spread: its claims follow from its numbers, its picture from its draws."""

from __future__ import annotations

import pytest
import torch

from robustvae.data import load
from robustvae.errors import RangeError
from robustvae.studies.lipschitz_spread import (
    EDGE,
    LipschitzSpread,
    Spread,
    draw,
    lipschitz_spread,
)


def spread(constant, beta, *width):
    return Spread(constant, beta, width, (2.0,) * 3, (0.1,) * 3, (3.0,) * 3)


def test_the_edge_holds_99_percent_of_the_prior():
    assert 1 - torch.tensor(-EDGE / 2).exp() == pytest.approx(0.99, abs=1e-6)


def test_claims_are_judged_by_differences_of_runs():
    found = LipschitzSpread(
        (
            spread(None, 1.0, 1.0, 1.1, 0.9),
            spread(5.0, 1.0, 3.0, 3.2, 2.8),
            spread(5.0, 4.0, 3.5, 2.9, 3.1),
            spread(5.0, 16.0, 1.0, 1.1, 0.9),
        ),
        {},
    )
    said = [verdict for _, _, verdict in found.claims()]
    assert said == ["agrees", "not clear", "agrees"]
    differences = [difference.split(" ± ")[0] for _, difference, _ in found.claims()]
    assert differences == ["2", "-0.167", "2.17"]


@pytest.mark.slow
def test_the_smallest_size_measures_what_it_draws(tmp_path):
    torch.set_default_dtype(torch.float32)
    train, test = load("digits", "train"), load("digits", "test")
    found, draws = lipschitz_spread(train, test, runs=tmp_path / "runs", size="smoke", seeds=2)
    assert [s.constant for s in found.spreads] == [None, 5.0, 5.0] and len(draws) == 3
    for one, z in zip(found.spreads, draws, strict=True):
        assert float(z.var(0, correction=0).mean().sqrt()) == pytest.approx(one.width[0], rel=0.1)
        assert float(z.mean(0).norm()) == pytest.approx(one.shift[0], abs=0.3)
        assert float((z.square().sum(1) > EDGE).double().mean()) == pytest.approx(one.outside[0])
    page = found.to_markdown("make it", "picture.png")
    assert "K = 5, beta = 10" in page and "picture.png" in page
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    draw(found, draws, test, tmp_path / "picture.png")
    assert 2_000 < (tmp_path / "picture.png").stat().st_size < 200_000


def test_one_seed_has_no_interval(tmp_path):
    few = load("digits", "test")
    with pytest.raises(RangeError, match="seeds"):
        lipschitz_spread(few, few, runs=tmp_path, seeds=1)
