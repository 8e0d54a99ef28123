"""Campaign plans: models x defenses x protocols."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch

import robustvae as rv
from robustvae import cli, errors, registry
from robustvae.campaign import read_campaign
from robustvae.campaign.plan import is_finished

ROOT = Path(__file__).parents[2]
BARE = {"base": "smoke", "inputs": 2, "r": 0.5, "certificates": False, "margins": None}
SMALL = """
models: [digits-vae, digits-lipschitz-vae]
plan: {base: smoke, inputs: 2, r: 1.0, without: [diagnosis_passed], certificates: false}
"""


def test_campaign_audits_and_compares(tmp_path, capsys):
    path = tmp_path / "plan.yaml"
    path.write_text(SMALL)
    words = ["campaign", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert cli.main(words) in (cli.DONE, cli.FAILED)
    first = capsys.readouterr()
    assert "digits-lipschitz-vae" in first.out
    names = ["digits-lipschitz-vae", "digits-vae"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert rv.report.read(tmp_path / "out" / name).model.name == name
        assert not list((tmp_path / "out" / name).glob(".*"))
    assert cli.main(words) in (cli.DONE, cli.FAILED)
    assert capsys.readouterr().err.count("it is there already") == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"models": ["a"], "defense": []}, "did you mean 'defenses'"),
        ({"models": []}, "models"),
        ({"models": "a"}, "models must be a list"),
        ({"models": [{"model": "a", "weight": "b"}]}, "did you mean 'weights'"),
        ({"models": [{"weights": "b"}]}, r"models\[0\] has no model"),
        ({"models": ["a/b", "a-b"]}, "'a/b' and 'a-b' have one folder, 'a-b': add a name"),
        ({"models": ["a", "A"]}, "'a' and 'A' have one folder"),
        ({"models": [{"model": "a", "name": "c"}, {"model": "b", "name": "c"}]}, "one folder"),
        ({"models": ["a", {"model": "a", "name": "b"}]}, r"models\[1\] is models\[0\] again"),
        ({"models": ["a" * 300]}, "of 1 to 200 bytes"),
        ({"models": ["a"], "seed": -1}, "seed"),
        ({"models": ["a"], "defenses": "posterior-mode"}, "defenses must be a list"),
        ({"models": ["a"], "defenses": ["nosuch"]}, r"defenses\[0\]: unknown defense 'nosuch'"),
        (
            {"models": ["a"], "defenses": ["posterior-mode:steps=5", {"posterior-mode": {}}]},
            r"defenses\[1\]",
        ),
        (
            {
                "models": ["a"],
                "defenses": ["posterior-mode:steps=5", {"name": "posterior-mode", "steps": 5}],
            },
            r"defenses\[1\] is defenses\[0\] again",
        ),
        ({"models": ["a"], "protocols": ["digits-l2-v1"] * 2}, r"protocols\[1\] is protocols"),
        ({"models": ["a"], "minutes": -1}, "minutes"),
        ({"models": ["a"], "defenses": ["posterior-mood"]}, "did you mean 'posterior-mode'"),
        ({"models": ["a"], "protocols": ["digits-l2"]}, "did you mean 'digits-l2-v1'"),
        ({"models": ["a"], "plan": {"inputz": 3}}, "did you mean 'inputs'"),
        ({"models": ["..."]}, "add a name"),
        ([], "must be a text or a Path or a mapping"),
        ("nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_bad_campaigns_are_explained(content, words):
    with pytest.raises(errors.RobustVAEError, match=words):
        read_campaign(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("models: [digits-vae]\ndata: mnits", "did you mean 'mnist'?"),
        ("models: [digits-vae]\nsplit: tset", "did you mean 'test'?"),
    ],
)
def test_unknown_data_end_a_campaign_first(content, words, tmp_path, capsys):
    path, out = tmp_path / "plan.yaml", tmp_path / "out"
    path.write_text(f"{content}\nplan: smoke\n")
    assert cli.main(["campaign", str(path), "--out", str(out), "-q"]) == cli.WRONG_USE
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and "audits could not be made" not in said
    assert not out.exists()


def test_protocols_tell_audits_apart():
    plan = read_campaign({"models": ["m"], "protocols": ["digits-l2-v1", "digits-linf-v1"]})
    assert [audit.name for audit in plan.audits()] == ["m-digits-l2-v1", "m-digits-linf-v1"]


def test_defenses_take_every_form():
    spec = {"name": "input-noise", "stddev": 0.25, "defense": {"name": "posterior-mode"}}
    plan = read_campaign({"models": ["m"], "defenses": [spec, "posterior-mode:steps=5"]})
    first, second = plan.defenses
    assert registry.build("defense", first) == registry.build("defense", spec)
    assert second == "posterior-mode:steps=5"


def test_models_as_mappings():
    mine = {"model": "m.py:build", "weights": "a.pt", "name": "mine"}
    audits = list(read_campaign({"models": ["m", mine]}).audits())
    assert [audit.name for audit in audits] == ["m", "mine"]
    assert audits[1].model.weights == "a.pt"


@pytest.mark.slow
def test_models_with_weights_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "tutorial_model.py", "mine.py")
    build = runpy.run_path("mine.py")["build"]
    for name in ("one", "two"):
        torch.save(build().state_dict(), f"{name}.pt")
    mine = [{"model": "mine.py:build", "weights": f"{n}.pt", "name": n} for n in ("one", "two")]
    content = {"models": mine, "data": "digits", "plan": BARE}
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    code = cli.main(["campaign", "study.yaml", "--out", "study", "--quiet"])
    assert code in (cli.DONE, cli.FAILED)
    records = [rv.report.read(tmp_path / "study" / name) for name in ("one", "two")]
    assert [record.model.name for record in records] == ["one", "two"]
    assert records[0].model.sha256 != records[1].model.sha256
    assert [row.names["model"] for row in rv.compare(records).rows] == ["one", "two"]


def study(folder: Path, content: dict) -> list[str]:
    """The command line of a campaign of that content."""
    path = folder / "plan.yaml"
    path.write_text(json.dumps(content))
    return ["campaign", str(path), "--out", str(folder / "out"), "--quiet"]


def test_other_question_is_refused(tmp_path, capsys):
    small = {"models": ["digits-vae"], "plan": {**BARE, "without": ["diagnosis_passed"]}}
    assert cli.main(study(tmp_path, small)) in (cli.DONE, cli.FAILED)
    record = (tmp_path / "out" / "digits-vae" / "record.json").read_bytes()
    for change in ({"seed": 1}, {"plan": {**small["plan"], "r": 0.6}}, {"split": "train"}):
        capsys.readouterr()
        assert cli.main(study(tmp_path, {**small, **change})) == cli.WRONG_USE
        words = capsys.readouterr().err
        assert f"holds another audit than is asked for, by {next(iter(change))}" in words
        assert (tmp_path / "out" / "digits-vae" / "record.json").read_bytes() == record
    words = [*study(tmp_path, {**small, "seed": 1}), "--fresh"]
    assert cli.main(words) in (cli.DONE, cli.FAILED)
    assert rv.report.read(tmp_path / "out" / "digits-vae").seed == 1


def test_other_weights_are_refused(tmp_path):
    folder = tmp_path / "audit"
    plan = read_campaign({"models": ["digits-vae"], "plan": "smoke"})
    question = plan.question(next(plan.audits()))
    assert not is_finished(folder, question, "0" * 64)
    images = rv.data.load("digits", split="test")
    record = rv.audit(rv.load("digits-vae"), images, BARE)
    rv.report.write(record, folder)
    with pytest.raises(errors.ConfigError, match="by what was asked there"):
        is_finished(folder, question, record.model.sha256)
    (folder / "campaign.json").write_text(json.dumps(question))
    assert is_finished(folder, question, record.model.sha256)
    with pytest.raises(errors.ConfigError, match="by the model's weights"):
        is_finished(folder, question, "0" * 64)


def test_bad_model_costs_no_other(tmp_path, capsys):
    small = {**BARE, "without": ["diagnosis_passed"]}
    models = ["nosuch-vae", {"model": "digits-vae", "name": "mine"}]
    assert cli.main(study(tmp_path, {"models": models, "plan": small})) == cli.WRONG_USE
    words = capsys.readouterr().err
    assert "nosuch-vae: " in words and "1 of 2 audits could not be made" in words
    assert rv.report.read(tmp_path / "out" / "mine").model.name == "mine"
