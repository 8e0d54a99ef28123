import json

import pytest
import torch

import robustvae as rv
from robustvae.data import load
from robustvae.errors import UnknownNameError
from robustvae.studies.defence_adaptive import defence_adaptive
from robustvae.studies.defence_cost import defence_cost, samplers
from robustvae.studies.defence_table import defence_table
from robustvae.studies.table import Row, Table


@pytest.fixture(scope="module")
def vae():
    return rv.models.create("vae", architecture="conv8", latent=4)


@pytest.fixture(scope="module")
def images():
    found = load("digits", split="test")
    return type(found)(found.x.to(torch.get_default_dtype()), found.y, found.name, found.split)


def test_the_defence_table_is_a_function_of_its_seed(vae, images):
    tables = [defence_table(vae, images, size="smoke", seed=3) for _ in range(2)]
    assert tables[0].rows == tables[1].rows
    rows = {(row.what, row.setting): row for row in tables[0].rows}
    assert rows["undefended (posterior mean)", "clean"].measured == 0
    assert {setting for _, setting in rows} == {"clean", "linf 0.1", "linf 0.2"}
    assert all(row.n == 8 and row.stderr >= 0 for row in tables[0].rows)


def test_the_cost_table_counts_what_was_spent(vae, images):
    table = defence_cost(vae, images, size="smoke", seed=3)
    counts = {row.cost for row in table.rows}
    assert counts == {getattr(defence, "gradients", 0) for _, defence in samplers(0.1)}


def test_the_worst_attack_is_no_weaker_than_any(vae, images):
    rows = defence_adaptive(vae, images, size="smoke", seed=3).rows
    for name in {row.what for row in rows}:
        found = {row.setting: row.measured for row in rows if row.what == name}
        assert found["worst per image"] >= max(found.values()) - 1e-9


def test_the_papers_schedule_spends_fifteen_thousand_gradients():
    assert samplers(1.0)[-1][1].gradients == 15_001


def test_a_table_on_paper(tmp_path):
    row = Row("HMC", "linf 0.1", 0.87, 0.01, 50, 130, reported=0.88, source="[Kuzina22] Table 2")
    other = Row("mode", "linf 0.1", 0.5, 0.01, 50)
    table = Table("A table", "MS-SSIM", (row, other), ("One sentence.",), {"seed": 0})
    assert row.agrees and other.agrees is None
    table.write(tmp_path, "name")
    text = (tmp_path / "name.md").read_text()
    assert "| HMC | 130 | 0.87 ± 0.01 (reported 0.88) |" in text and "- One sentence." in text
    assert json.loads((tmp_path / "name.json").read_text())["rows"][0]["reported"] == 0.88


@pytest.mark.parametrize("study", [defence_adaptive, defence_cost, defence_table])
def test_an_unknown_size_is_refused(study, vae, images):
    with pytest.raises(UnknownNameError, match="smoke"):
        study(vae, images, size="smok")
