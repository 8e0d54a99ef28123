"""[Khan23] in small: scores, curves and attacks of the geometry study."""

from __future__ import annotations

import itertools
import math

import pydantic
import pytest
import torch

from experiments.harness import load_items
from experiments.papers.khan2023.geometry import claims_of, least_step, objectives_of
from experiments.papers.khan2023.measures import (
    CLIMB,
    MIXUP,
    ONE_SHOT,
    PLANE,
    SHOWN,
    STEPS,
    Measured,
    Spread,
)

ITEM = load_items()["khan2023/geometry"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    torch.set_default_dtype(torch.float32)
    pictures = tmp_path_factory.mktemp("pictures")
    pytest.importorskip("matplotlib")
    result = ITEM.run(ITEM.spec("smoke", {"pictures": str(pictures)}), seed=3)
    names = {path.name.removeprefix("khan-geometry-digits-") for path in pictures.glob("*.png")}
    assert names == {
        f"{kind}.png"
        for kind in [
            "scores",
            "histograms",
            "steps",
            "displacement",
            "gallery",
            "eigen-images",
            "map",
        ]
    }
    found = []
    for model in result.values["models"].values():
        for damage in model["damage"]:
            damage["latent_share"]["values"] = damage["output_share"]["values"] = []
        found.append(pydantic.TypeAdapter(Measured).validate_python(model))
    return found


def test_betas_are_spaced_by_ratio():
    betas = [o.beta for name, o in objectives_of(13).items() if name not in (MIXUP, PLANE)]
    assert len(betas) == 13 and betas[0] == 0.01 and betas[-1] == pytest.approx(10)
    assert all(b / a == pytest.approx(10**0.25) for a, b in itertools.pairwise(betas))
    assert set(SHOWN) <= set(objectives_of(13))


def test_step_curves_start_at_zero(models):
    for model in models:
        assert len(model.curves) == 2 * 2 * 5
        assert all(len(c.error) == len(STEPS[c.scale]) == 40 for c in model.curves)
        first = model.curve("eigenvalue", box=False)
        assert first.error[0] == pytest.approx(model.error, rel=0.01)
        free, box = (model.curve("unit", box).displacement for box in (False, True))
        assert sum(box) < sum(free)
        share = torch.tensor(model.scores["std term's share of the trace"].values)
        assert ((share > 0) & (share < 1)).all()


def test_one_shot_is_held_against_ascent(models):
    attacked = [model for model in models if model.damage]
    assert {model.name for model in attacked} == set(SHOWN)
    for model in attacked:
        for at in model.by_ball().values():
            assert at[CLIMB].latent_share.mean == pytest.approx(1)
            assert at[ONE_SHOT].queries < 40
            assert math.isfinite(at[ONE_SHOT].latent.mean)


def test_claims_see_trend_that_is_there(models):
    falling = []
    for i, model in enumerate(models):
        numbers = torch.full((4,), 10.0 - i)
        scores = {key: Spread.of(numbers) for key in model.scores}
        changed = {"scores": scores, "beta": 1.0 + i}
        falling.append(Measured(**{**vars_of(model), **changed}))
    verdicts = {claim.sentence: claim.holds for claim in claims_of(falling)}
    assert verdicts["The spectral radius falls with beta."]
    assert not verdicts["The std term's share of the metric grows with beta."]
    assert least_step(models[0], "unit") > 0


def vars_of(model):
    return {name: getattr(model, name) for name in Measured.__dataclass_fields__}
