"""A stored audit is computed again, and whatever was changed is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import robustvae as rv
from robustvae import cli
from robustvae.attacks import rescore
from robustvae.audit import Run
from robustvae.errors import CheckpointError, DataError
from robustvae.loops import packed, unpacked
from robustvae.records import read_manifest
from robustvae.records.audit import row_sha256
from robustvae.records.files import MANIFEST, manifest


@pytest.fixture(scope="module")
def stored(digits, tmp_path_factory):
    from tests.audit.conftest import ONE

    folder = tmp_path_factory.mktemp("stored")
    run = Run(name="digits-vae", source="digits-vae")
    record = rv.audit(rv.load("digits-vae"), digits, plan=ONE, question={"r": 1.0}, run=run)
    rv.report.write(record, folder)
    return folder


@pytest.fixture
def copy(stored, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(stored, folder)
    return folder


def test_stored_audit_is_verified(stored):
    verification = rv.verify(stored)
    assert verification.passed, str(verification)
    assert verification.recomputed == verification.rows == 2
    assert all(read_manifest(stored).values())


def edited(folder, change, *, rehash=False):
    path = folder / "record.json"
    content = json.loads(path.read_text())
    change(content)
    if rehash:
        content["hashes"] = [row_sha256(row) for row in content["rows"]]
    path.write_text(json.dumps(content))


def test_changed_row_is_named(copy):
    edited(copy, lambda content: content["rows"][1].update(damage=9.0))
    words = str(rv.verify(copy))
    assert "NOT verified" in words
    assert "record.json is not the file that was written" in words
    assert "row 1 (input" in words and "was changed after it was measured" in words
    assert "damage is stored as 9.0, computed again" in words
    assert "summary damage is stored as" in words


def test_careful_forger_is_named_too(copy):
    edited(copy, lambda c: [row.update(certified=0.9) for row in c["rows"]], rehash=True)
    (copy / "manifest.json").unlink()
    words = str(rv.verify(copy, inputs=1))
    assert "was changed after" not in words
    assert "certified is stored as 0.9, computed again" in words


def test_missing_inputs_are_named(copy):
    (copy / "adversarials.safetensors").unlink()
    verification = rv.verify(copy)
    assert not verification.passed
    assert any("adversarials.safetensors" in problem for problem in verification.problems)


def test_exchanged_input_is_named(copy):
    path = copy / "adversarials.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "/" in key)
    tensors[key] = tensors[key].flip(0)
    save_file(tensors, path)
    words = str(rv.verify(copy, inputs=0))
    assert "is not the one in its row" in words


def test_other_weights_are_named(copy):
    vae = rv.load("digits-vae")
    with torch.no_grad():
        next(vae.parameters()).mul_(1.01)
    words = str(rv.verify(copy, inputs=1, victim=vae))
    assert "weights are not those that were audited" in words


def test_measures_are_announced_in_order(copy):
    steps = []
    rv.verify(copy, inputs=1, progress=lambda *step: steps.append(step))
    total = steps[-1][1]
    assert [done for done, _, _ in steps] == [*range(total), total]
    assert all(": " in what for _, _, what in steps[:-1])


def test_unknown_model_is_not_checked(copy):
    edited(copy, lambda content: content["model"].update(source="nowhere", name="nowhere"))
    files = {name: (copy / name).read_bytes() for name in read_manifest(copy)}
    (copy / MANIFEST).write_text(manifest(files))
    verification = rv.verify(copy)
    assert verification.recomputed == 0
    assert any("victim=" in reason for reason in verification.not_checked)
    assert str(verification).startswith("agrees with itself, not verified:")
    assert cli.main(["verify", str(copy)]) == 1
    assert cli.main(["verify", str(copy), "--inputs", "0"]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_survive_storage(dtype):
    x = torch.randn(3, 1, 2, 2, dtype=dtype)
    assert torch.equal(unpacked(json.loads(json.dumps(packed(x)))), x)


def test_rescore_reads_audit(stored, copy):
    scores = rescore(stored, rv.load("digits-vae"))
    assert scores.agrees and scores.same_model and scores.inside.all()
    assert len(scores.damage) == 2
    assert cli.main(["rescore", str(stored)]) == 0
    edited(copy, lambda content: content["rows"][1].update(damage=9.0))
    assert not rescore(copy, rv.load("digits-vae")).agrees
    assert cli.main(["rescore", str(copy)]) == 1
    with pytest.raises(CheckpointError, match="--model NAME"):
        rescore(stored)
    (copy / "adversarials.safetensors").unlink()
    with pytest.raises(DataError, match="no attacked inputs"):
        rescore(copy, rv.load("digits-vae"))


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.d = nn.Linear(64, 8), nn.Linear(4, 64)

    def encode(self, x):
        return self.e(x.flatten(1)).chunk(2, 1)

    def decode(self, z):
        return torch.sigmoid(self.d(z)).view(-1, 1, 8, 8)

def build():
    return Net()
"""


def test_own_weights_are_verified(tmp_path, capsys):
    (tmp_path / "net.py").write_text(FACTORY)
    state = {"e.weight": (8, 64), "e.bias": (8,), "d.weight": (64, 4), "d.bias": (64,)}
    tensors = {name: 0.1 * torch.randn(shape).float() for name, shape in state.items()}
    torch.save(tensors, tmp_path / "w.pt")
    own = ["--weights", str(tmp_path / "w.pt")]
    words = [f"{tmp_path}/net.py:build", *own, "--data", "digits", "--plan", "smoke", "--quiet"]
    torch.set_default_dtype(torch.float32)  # as the command finds it
    cli.main(["audit", *words, "--out", str(tmp_path / "out")])
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "out")]) == 1
    assert "--model" in capsys.readouterr().out
    named = ["--model", f"{tmp_path}/net.py:build", *own]
    assert cli.main(["verify", str(tmp_path / "out"), *named]) == 0
    assert cli.main(["rescore", str(tmp_path / "out"), *named]) == 0


@pytest.mark.parametrize("command", ["verify", "rescore"])
@pytest.mark.parametrize("options", [[], ["--pixels", "0,1"]])
def test_code_of_records_never_runs(copy, tmp_path, monkeypatch, capsys, command, options):
    """A stranger's record may name any file; it runs only where the user names it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\ndef build(): return None\n")
    for source in ("evil.py:build", "evil:Model"):
        edited(copy, lambda content, name=source: content["model"].update(source=name, name=name))
        assert cli.main([command, str(copy), *options]) in (1, 2)
        assert "name" in "".join(capsys.readouterr())
        assert not (tmp_path / "ran").exists()
