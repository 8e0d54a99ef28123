import json
from dataclasses import replace

import pytest
import torch

import robustvae as rv
from robustvae.data import Images, load
from robustvae.errors import DataError, UnknownNameError
from robustvae.studies.defense_adaptive import PICK, SIZES, WORST, defense_adaptive
from robustvae.studies.defense_chains import defense_chains
from robustvae.studies.defense_cost import PAIRED, PAPERS, RECOVERY, defense_cost, samplers
from robustvae.studies.defense_ratio import BEFORE, defense_ratio
from robustvae.studies.defense_strength import REPORTED, defense_strength, reported_as
from robustvae.studies.defense_table import GUESS, defense_table
from robustvae.studies.kept import Keep, Kept, Unfinished
from robustvae.studies.table import Row, Table


@pytest.fixture(scope="module")
def vae():
    return rv.models.create("vae", architecture="conv8", latent=4)


@pytest.fixture(scope="module")
def images():
    found = load("digits", split="test")
    return type(found)(found.x.to(torch.get_default_dtype()), found.y, found.name, found.split)


def test_the_defense_table_is_a_function_of_its_seed(vae, images):
    tables = [defense_table(vae, images, size="smoke", seed=3) for _ in range(2)]
    assert tables[0].rows == tables[1].rows
    rows = {(row.what, row.setting): row for row in tables[0].rows}
    assert rows["undefended (posterior mean)", "clean"].measured == 0
    assert {setting for _, setting in rows} == {"clean", "linf 0.1", "linf 0.2", "l2 2"}
    assert all(row.n == (1 if row.what == GUESS else 8) for row in tables[0].rows)


def test_the_cost_table_counts_what_was_spent(vae, images):
    table = defense_cost(vae, images, size="smoke", seed=3)
    rows = {(row.what, row.setting): row for row in table.rows}
    leaving = [row.cost for row in table.rows if "plateau" in row.what]
    assert set(leaving) and all(0 < cost <= 16 for cost in leaving)
    counts = {row.cost for row in table.rows if "plateau" not in row.what}
    assert counts >= {getattr(d, "gradients", 0) for n, d in samplers(0.1) if "plateau" not in n}
    first = table.rows[0].what
    assert first.startswith(PAPERS) and rows[first, PAIRED].measured == 0
    for name in {row.what for row in table.rows}:
        gap = rows[name, RECOVERY].measured - rows[first, RECOVERY].measured
        assert abs(rows[name, PAIRED].measured - gap) < 1e-9


def test_an_interrupted_study_goes_on_and_ends_the_same(vae, images, tmp_path):
    whole = defense_ratio(vae, images, size="smoke", seed=3)
    path = tmp_path / "kept.jsonl"
    with pytest.raises(Unfinished):
        defense_ratio(vae, images, size="smoke", seed=3, kept=Keep(path, minutes=-1))
    told = []
    defense_ratio(vae, images, size="smoke", seed=3, kept=Keep(path), progress=told.append)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])
    again = defense_ratio(vae, images, size="smoke", seed=3, kept=Keep(path))
    assert again.rows == whole.rows and len(told) == len(lines) - 1
    with pytest.raises(DataError, match="another run"):
        defense_ratio(vae, images, size="smoke", seed=4, kept=Keep(path))


def test_a_part_is_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"score": [1.0]}

    for _ in range(2):
        kept = Kept(tmp_path / "kept.jsonl", {"seed": 0})
        assert kept("part", compute) == kept("part", compute) == {"score": [1.0]}
    assert len(calls) == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_the_worst_attack_is_no_weaker_than_any(restarted, vae, images, monkeypatch):
    monkeypatch.setitem(SIZES, "smoke", replace(SIZES["smoke"], restarted=restarted))
    rows = defense_adaptive(vae, images, size="smoke", seed=3).rows
    for name in ("undefended", "robust mode", "HMC"):
        for measure, pick in PICK.items():
            for radius in (0.1, 0.2):
                setting = f"{measure}, linf {radius}"
                own = {
                    row.what.removeprefix(f"{name}: "): row.measured
                    for row in rows
                    if row.what.startswith(name) and row.setting == setting
                }
                worst = own.pop(WORST)
                assert len(own) == 8
                assert pick(worst, *own.values()) == pytest.approx(worst)


def test_the_ratio_of_a_sample_to_itself_is_no_evidence(vae, images):
    rows = {(row.what, row.setting): row for row in defense_ratio(vae, images, size="smoke").rows}
    assert rows[BEFORE, "p value"].measured == 1
    assert 0 <= rows["posterior mode", "p value"].measured <= 1


def test_the_diagnostics_are_by_image(vae, images):
    rows = {(r.what, r.setting): r for r in defense_chains(vae, images, size="smoke").rows}
    names = {what for what, _ in rows}
    assert {"L = 1", "L = 20"} < names
    for name in names:
        assert 0 <= rows[name, "acceptance"].measured <= 1
        assert rows[name, "largest of them"].measured >= rows[name, "worst R-hat"].measured


def test_the_strength_table_sets_the_papers_numbers_beside_ours(vae, images):
    table = defense_strength(vae, images, size="smoke", seed=3)
    assert all(row.reported is None for row in table.rows)  # the paper has no such digits
    rows = {(row.what, row.setting): row for row in table.rows}
    for setting in ("MS-SSIM, linf 0.1", "accuracy, clean", "accuracy, linf 0.2"):
        assert all(0 <= rows[name, setting].measured <= 1 for name in ("undefended", "HMC"))
    accuracies = [rows["undefended", f"accuracy, {w}"].measured for w in ("clean", "linf 0.2")]
    assert accuracies[0] >= accuracies[1]


@pytest.mark.parametrize(
    ("name", "kind", "hmc"),
    [
        ("mnist", "label", 0.19),
        ("fashion_mnist", "label", 0.13),
        ("color_mnist", "digit", 0.11),
        ("color_mnist+label:color", "color", 0.62),
    ],
)
def test_each_data_set_finds_the_papers_numbers(images, name, kind, hmc):
    own = Images(
        images.x, images.y, name=name, labels={"other": (images.y + 1) % 10, kind: images.y}
    )
    assert REPORTED[reported_as(own), "HMC", "accuracy, linf 0.2"] == hmc


def test_the_papers_schedule_spends_fifteen_thousand_gradients():
    assert samplers(1.0)[0][1].gradients == 15_001


def test_a_table_on_paper(tmp_path):
    row = Row("HMC", "linf 0.1", 0.87, 0.01, 50, 130, reported=0.88, source="[Kuzina22] Table 2")
    other = Row("mode", "linf 0.1", 0.5, 0.01, 50)
    table = Table("A table", "MS-SSIM", (row, other), ("One sentence.",), {"seed": 0})
    assert row.agrees and other.agrees is None
    table.write(tmp_path, "name")
    text = (tmp_path / "name.md").read_text()
    assert "| HMC | 130 | 0.87 ± 0.01 (reported 0.88) |" in text and "- One sentence." in text
    assert json.loads((tmp_path / "name.json").read_text())["rows"][0]["reported"] == 0.88


@pytest.mark.parametrize(
    "study",
    [
        defense_adaptive,
        defense_chains,
        defense_cost,
        defense_ratio,
        defense_strength,
        defense_table,
    ],
)
def test_an_unknown_size_is_refused(study, vae, images):
    with pytest.raises(UnknownNameError, match="smoke"):
        study(vae, images, size="smok")
