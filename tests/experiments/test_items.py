"""Every item at its smallest size, in one process, and what their numbers must satisfy."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

import robustvae as rv
from experiments.harness import Result, load_items
from experiments.papers.kuzina2022.adaptive import PICK, WORST
from experiments.papers.kuzina2022.common import drawn_by_them, similarity, unclipped
from experiments.papers.kuzina2022.cost import PAIRED, PAPERS, RECOVERY, samplers
from experiments.papers.kuzina2022.printed import TABLES, cell_of, printed, value_of
from experiments.papers.kuzina2022.ratio import BEFORE
from robustvae.errors import MissingExtraError

ITEMS = load_items()
SECONDS = 120  # for all of them; a quiet core takes half of it


@pytest.fixture(autouse=True)
def float32():
    """As the command runs them; the house's float64 comes back with the next test."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def results():
    return {}


@pytest.mark.parametrize("name", ITEMS)
def test_item_runs_at_smoke(name, results):
    began = time.process_time()
    try:
        result = results[name] = ITEMS[name].run()
    except MissingExtraError as error:  # some train with the extra of that name
        pytest.skip(str(error))
    results.setdefault("seconds", []).append(time.process_time() - began)
    assert result.rows and result.facts["command"].startswith("python -m experiments run")
    assert Result.from_json(result.to_json()).to_markdown() == result.to_markdown()


def test_items_are_quick_together(results):
    assert sum(results["seconds"]) < SECONDS


def of(results, name):
    if name not in results:
        results[name] = ITEMS[name].run()
    return results[name]


def test_run_is_function_of_its_seed(results):
    again = ITEMS["kuzina2022/recovery"].run()
    assert again.rows == of(results, "kuzina2022/recovery").rows
    clean = again.row("undefended (posterior mean)", "clean")
    assert clean.measured == 0
    assert ITEMS["kuzina2022/recovery"].run(seed=1).rows != again.rows


def test_cost_counts_what_was_spent(results):
    rows = of(results, "kuzina2022/cost").rows
    by_place = {(row.what, row.setting): row for row in rows}
    leaving = [row.cost for row in rows if "plateau" in row.what]
    assert set(leaving) and all(0 < cost <= 16 for cost in leaving)
    first = rows[0].what
    assert first.startswith(PAPERS) and by_place[first, PAIRED].measured == 0
    for what in {row.what for row in rows}:
        gap = by_place[what, RECOVERY].measured - by_place[first, RECOVERY].measured
        assert by_place[what, PAIRED].measured == pytest.approx(gap, abs=1e-9)
    assert samplers(1.0)[0][1].gradients == 15_001


def test_worst_attack_is_no_weaker(results):
    rows = of(results, "kuzina2022/adaptive").rows
    for name in ("undefended", "robust mode", "HMC"):
        for measure, pick in PICK.items():
            setting = f"{measure}, linf 0.2"
            each = {
                row.what.removeprefix(f"{name}: "): row.measured
                for row in rows
                if row.what.startswith(name) and row.setting == setting
            }
            worst = each.pop(WORST)
            assert len(each) == 8 and pick(worst, *each.values()) == pytest.approx(worst)


def test_sample_against_itself_is_no_evidence(results):
    result = of(results, "kuzina2022/ratio")
    assert result.row(BEFORE, "p value").measured == 1
    assert 0 <= result.row("posterior mode", "p value").measured <= 1


def test_largest_of_chains_is_above_mean(results):
    result = of(results, "kuzina2022/chains")
    for what in {row.what for row in result.rows}:
        largest = result.row(what, "largest of them").measured
        assert largest >= result.row(what, "worst R-hat").measured


def test_accuracy_falls_under_attack(results):
    result = of(results, "kuzina2022/strength")
    ends = [result.row("undefended", f"accuracy, {w}").measured for w in ("clean", "linf 0.2")]
    assert ends[0] >= ends[1]
    assert all(row.reported is None for row in result.rows)  # the paper has no such digits


def test_certificates_lie_below_attacks(results):
    for name in ("barrett2022/tightness", "own/digits-models", "own/local-certificates"):
        broken = [
            row.measured
            for row in of(results, name).rows
            if "violations" in row.setting or "above attacked" in row.what
        ]
        assert broken and not any(broken), name


def test_no_trial_refutes_a_certificate(results):
    rows = {row.setting: row.measured for row in of(results, "own/soundness").rows}
    assert rows["done"] >= 200 and rows["violations"] == 0


def test_printed_tables_have_every_cell():
    counts = {name: len(printed(name)) for name in TABLES}
    assert counts == {"table-2": 48, "table-3": 88, "table-4": 84, "table-5": 12, "table-7": 49}
    assert printed("table-4")["0.2/tc+hmc/color/color accuracy"] == (0.72, 0.03)
    assert printed("table-3")["color/avae-ss/fid"] == (12.4, None)


@pytest.mark.parametrize(
    ("model", "labels", "value"),
    [
        ("mnist-conv28", None, 0.19),
        ("fashion-conv28", None, 0.13),
        ("color-mnist-conv28", "digit", 0.11),
        ("color-mnist-conv28", "color", 0.62),
        ("mnist-conv28-tc-2", None, 0.16),
    ],
)
def test_each_model_finds_its_printed_cell(model, labels, value):
    key = cell_of(model, "HMC", "accuracy, linf 0.2", labels)
    assert value_of(key)[0] == value
    assert cell_of("digits-vae", "HMC", "accuracy, linf 0.2") is None
    assert cell_of(model, "robust mode", "accuracy, linf 0.2") is None


def test_references_are_the_authors_own():
    """Their code seeds numpy's global numbers and splits without a state of its own."""
    images = rv.data.load("digits", split="test")
    before = np.random.get_state()
    np.random.seed(1234)
    rows = train_test_split(range(len(images)), stratify=images.y.numpy(), test_size=50)[1]
    np.random.set_state(before)
    x, y = drawn_by_them(images, 50)
    assert torch.equal(x, images.x[rows]) and torch.equal(y, images.y[rows])


def test_similarity_unclipped_differs_outside(generator):
    x = torch.rand(3, 1, 28, 28, generator=generator)
    pale, far = 0.8 * x + 0.1, 1.6 * x - 0.3
    torch.testing.assert_close(unclipped(pale, x), similarity(pale, x))
    assert (unclipped(far, x) - similarity(far, x)).abs().min() > 1e-3


def test_small_floor_hardly_moves_training(results):
    result = of(results, "kuzina2022/floor")
    assert result.row("digits-vae", "pixels beyond the floor").measured < 0.5
    assert 0 <= result.row("digits-vae", "difference of the gradients").measured < 0.1


def test_table_4_repeats_table_2():
    for row in ("vae", "vae+hmc", "beta"):
        for radius in ("0.1", "0.2"):
            one = printed("table-2").get(f"mnist/{row}/ms-ssim {radius}")
            assert one == printed("table-4")[f"{radius}/{row}/mnist/ms-ssim"]
