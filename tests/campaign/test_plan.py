"""Campaign plans: models x defenses x protocols."""

from __future__ import annotations

import pytest

import robustvae as rv
from robustvae import cli, errors
from robustvae.campaign import read_campaign

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
        ({"models": ["a/b", "a-b"]}, "two audits are called 'a-b'"),
        ({"models": ["a"], "minutes": -1}, "minutes"),
        ([], "must be a YAML file or a mapping"),
        ("nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_bad_campaigns_are_explained(content, words):
    with pytest.raises(errors.RobustVAEError, match=words):
        read_campaign(content)


def test_protocols_tell_audits_apart():
    plan = read_campaign({"models": ["m"], "protocols": ["p", "q"]})
    assert [audit.name for audit in plan.audits()] == ["m-p", "m-q"]
