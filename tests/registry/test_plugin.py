"""The example plug-in, installed beside the library and used by name from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import robustvae

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"
SOURCE = Path(robustvae.__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python in a process that has the plug-in installed."""
    place = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(place)]
    pip = [sys.executable, "-m", "pip", "install", *options, str(PLUGIN)]
    installation = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert installation.returncode == 0, installation.stderr
    environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{SOURCE}"}

    def call(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=place,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return call


MEMBERS = {
    "goal": "darkening",
    "search": "random-walk",
    "defense": "rounded",
    "model": "linear-vae",
    "objective": "plain-loss",
    "measure": "brightness",
    "check": "something_darkened",
    "suite": "dark",
    "data": "stripes",
}


def test_members_are_listed(run):
    """By the command, in one process: nine would import all of it nine times."""
    lines = "; ".join(f"print('== {family}'); main(['list', '{family}'])" for family in MEMBERS)
    told = run("-c", f"from robustvae.cli import main; {lines}").split("== ")[1:]
    for (family, name), part in zip(MEMBERS.items(), told, strict=True):
        assert part.startswith(family)
        assert name in part and "robustvae-example" in part


def test_members_keep_their_contracts(run):
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests"))
    assert "passed" in told and "failed" not in told


PLAN = """
base: smoke
inputs: 2
suite: dark
defenses: [rounded]
measures: [brightness]
checks: [something_darkened]
"""


def test_model_is_trained_and_audited(run, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\n"
        "data: {name: stripes}\n"
        "model: {name: linear-vae, latent: 3}\n"
        "objective: {name: plain-loss}\n"
        "training: {epochs: 1, batch_size: 50}\n"
    )
    out = tmp_path / "run"
    run("-m", "robustvae", "train", str(recipe), "--out", str(out), "--quiet")
    told = run("-c", f"import robustvae as rv; print(type(rv.load({str(out)!r})).__name__)")
    assert "LinearVAE" in told
    plan, report = tmp_path / "drill.yaml", tmp_path / "report"
    plan.write_text(PLAN)
    options = ["--data", "stripes", "--plan", str(plan), "--r", "0.5", "--out", str(report)]
    # one epoch makes no useful model, and the audit says so
    told = run("-m", "robustvae", "audit", str(out), *options, code=1)
    assert "something_darkened" in told and "Not useful" in told
    record = json.loads((report / "record.json").read_text())
    assert {row["victim"] for row in record["rows"]} == {"undefended", "rounded"}
    assert all(row["darkened"] is not None for row in record["rows"])
    assert any(row["goal"] == "darkening" for row in record["rows"])
    assert "fall of the output" in (report / "report.html").read_text()


def test_broken_package_is_one_sentence(run):
    code = (
        "import importlib.metadata as m, robustvae.registry.members as r;"
        "point = m.EntryPoint('goal.lost', 'no_such_module:Lost', r.GROUP);"
        "r._all_entry_points()['goal']['lost'] = point;"
        "print(next(e.summary for e in r.describe('goal') if e.name == 'lost'))"
    )
    assert "cannot be loaded" in run("-c", code)
