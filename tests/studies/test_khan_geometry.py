import itertools
import json
import math

import pytest
import torch

from robustvae.data import load
from robustvae.errors import CheckpointError, UnknownNameError
from robustvae.geometry import pullback
from robustvae.studies.khan_geometry import (
    SIZES,
    claims_of,
    khan_geometry,
    least_step,
    objectives_of,
)
from robustvae.studies.khan_measures import (
    CLIMB,
    MIXUP,
    ONE_SHOT,
    PLAIN,
    PLANE,
    SHOWN,
    STEPS,
    Spread,
)
from robustvae.studies.khan_pictures import draw


@pytest.fixture(scope="module")
def images():
    return load("digits", "train"), load("digits", "test")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def study(images, runs):
    return khan_geometry(*images, size="smoke", seed=3, runs=runs)


def test_the_betas_are_spaced_by_ratio_and_mixup_stands_beside_them():
    found = objectives_of(SIZES["laptop"])
    betas = [objective.beta for name, objective in found.items() if name not in (MIXUP, PLANE)]
    assert len(betas) == 13 and betas[0] == 0.01 and betas[-1] == pytest.approx(10)
    assert all(b / a == pytest.approx(10**0.25) for a, b in itertools.pairwise(betas))
    assert set(SHOWN) <= set(found)


def test_a_second_run_takes_the_trained_models_and_finds_the_same(study, images, runs):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    again, _, _ = khan_geometry(*images, size="smoke", seed=3, runs=runs)
    assert len(before) == len(objectives_of(SIZES["smoke"]))
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    assert again.models == study[0].models and again.claims == study[0].claims


def test_runs_of_another_seed_are_not_mistaken_for_these(study, images, runs):
    with pytest.raises(CheckpointError, match="another run"):
        khan_geometry(*images, size="smoke", seed=4, runs=runs)


def test_the_scores_are_those_of_the_pullback(study):
    result, vaes, x = study
    for model in result.models:
        geometry = pullback(vaes[model.name], x)
        radius = model.scores["spectral radius"]
        assert radius.values == pytest.approx(geometry.spectral_radius.tolist(), rel=1e-4)
        share = torch.tensor(model.scores["std term's share of the trace"].values)
        assert ((share > 0) & (share < 1)).all()
        assert radius.low < radius.mean < radius.high


def test_curves_start_where_nothing_is_perturbed_and_clipping_never_lengthens_a_step(study):
    for model in study[0].models:
        assert len(model.curves) == 2 * 2 * 5
        for curve in model.curves:
            assert len(curve.error) == len(STEPS[curve.scale]) == 40
        first = model.curve("eigenvalue", box=False)
        assert first.error[0] == pytest.approx(model.error, rel=0.01)
        free, box = (model.curve("unit", box).displacement for box in (False, True))
        assert sum(box) < sum(free)


def test_a_small_step_moves_the_code_by_what_the_metric_says(study):
    result, vaes, x = study
    for model in result.models:
        geometry = pullback(vaes[model.name], x)
        mean_part = pullback(vaes[model.name], x, part="mean").spectral_radius
        step = STEPS["unit"][0]
        moved = model.curve("unit", box=False).displacement[0] / step
        assert moved <= 1.05 * float(mean_part.sqrt().mean())
        assert moved <= 1.05 * float(geometry.spectral_radius.sqrt().mean())


def test_shares_are_of_projected_ascent(study):
    for model in study[0].models:
        assert len(model.by_ball()) == 6
        for at in model.by_ball().values():
            assert at[CLIMB].latent_share.values == (1.0,) * SIZES["smoke"].attacked
            assert at[ONE_SHOT].latent_share.mean > 0 and at[ONE_SHOT].queries == 26


def test_claims_are_judged_by_the_numbers(study):
    models = study[0].models
    assert claims_of(models) == study[0].claims
    mirrored = [m.__class__(**{**vars(m), "beta": 0.1 / m.beta}) for m in models if m.name != MIXUP]
    first = claims_of([m for m in models if m.name != MIXUP])[0]
    other = claims_of(sorted(mirrored, key=lambda m: m.beta))[0]
    assert not (first.holds and other.holds)
    assert all(math.isinf(least_step(m, "unit")) or least_step(m, "unit") > 0 for m in models)


def test_a_spread_covers_its_mean():
    spread = Spread.of(torch.tensor([1.0, 2.0, 3.0]))
    assert (spread.mean, spread.stddev) == (2, pytest.approx(1))
    assert spread.high - spread.mean == pytest.approx(1.96 / 3**0.5)
    assert str(spread) == "2 ± 1.1"


def test_the_page_and_the_numbers_on_disk(study, tmp_path):
    result = study[0]
    result.write(tmp_path, "name")
    stored = json.loads((tmp_path / "name.json").read_text())
    assert [model["name"] for model in stored["models"]] == [m.name for m in result.models]
    page = (tmp_path / "name.md").read_text()
    assert all(claim.sentence in page for claim in result.claims)
    assert f"| {PLAIN} | 0.5223, free |" in page and "seed: 3" in page


def test_the_pictures_are_small(study, images, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    result, vaes, x = study
    draw(result.models, vaes, x, images[1], tmp_path / "img", "digits")
    files = list((tmp_path / "img").glob("digits-*.png"))
    assert len(files) == 7 and all(0 < file.stat().st_size < 300_000 for file in files)


def test_an_unknown_size_is_refused(images):
    with pytest.raises(UnknownNameError, match="smoke"):
        khan_geometry(*images, size="smok")
