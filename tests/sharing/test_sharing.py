"""Folders for the Hub: what is in them, and that what is sent is what was written."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

import robustvae as rv
from robustvae.errors import ConfigError, MissingExtraError, StorageError
from robustvae.models import checkpoint
from robustvae.sharing import card, export, manifest_of, push_to_hub


@pytest.fixture(scope="module")
def vae():
    return rv.load("digits-vae")


@pytest.fixture(scope="module")
def record(vae) -> rv.Record:
    return rv.audit(vae, rv.data.load("digits", split="test"), plan="smoke", seed=0)


def test_exported_model_loads_again(vae, record, tmp_path) -> None:
    folder = export(tmp_path / "out", model=vae, record=record, facts={"data": "digits"})
    again = rv.load(folder)
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    assert rv.report.read(folder / "audit").summary == record.summary
    assert {"README.md", "audit/report.html", "model.safetensors"} <= set(manifest_of(folder))


def test_exported_audit_verifies_by_itself(vae, record, tmp_path, monkeypatch) -> None:
    """Of a model that no name loads: the checkpoint beside the audit is found, if it is the one."""
    assert record.model.source is None and record.model.name not in rv.zoo.names()
    folder = export(tmp_path / "out", model=vae, record=record)
    monkeypatch.chdir(folder)
    for place in (folder / "audit", Path("audit")):
        verification = rv.verify(place, 1)
        assert verification.passed and verification.recomputed > 0, str(verification)
    checkpoint.save(rv.load("digits-vae-noise"), folder)
    assert rv.verify(folder / "audit", 1).recomputed == 0


def test_export_is_one_change(vae, record, tmp_path) -> None:
    folder = export(tmp_path / "out", model=vae, record=record)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()  # the last of the files cannot be written
    other = rv.load("digits-vae-noise")
    with pytest.raises(StorageError, match="README"):
        export(folder, model=other, record=record)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == {p: content for p, content in before.items() if p.name != "README.md"}


def test_strangers_card_is_kept(vae, tmp_path) -> None:
    (tmp_path / "README.md").write_text("mine\n")
    with pytest.raises(StorageError, match="would be lost"):
        export(tmp_path, model=vae)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    (tmp_path / "README.md").unlink()
    export(export(tmp_path, model=vae), model=vae)  # its own is written again


def test_card_states_verdict_and_numbers(record) -> None:
    text = card(record)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "robustvae"
    assert record.verdict.first in body and "Damage by the worst attack" in body
    assert "robustvae verify audit" in body


def test_card_escapes_text_from_outside() -> None:
    text = card(name="a | b\n# <script>", facts={"x|y": "1\n2"})
    assert "<script>" not in text and r"# a \| b # &lt;script>" in text
    assert r"- x\|y: 1 2" in text


def test_nothing_to_export_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="model= or record="):
        export(tmp_path)


class Hub:
    """A Hub that is a folder."""

    place: Path
    calls: list

    def __init__(self, token=None) -> None:
        Hub.calls.append(("token", token))

    def create_repo(self, repository, private, exist_ok):
        Hub.calls.append((repository, private, exist_ok))

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, Hub.place / repo_id)
        return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    fake = types.ModuleType("huggingface_hub")
    fake.HfApi, Hub.place, Hub.calls = Hub, tmp_path, []
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return tmp_path


def test_push_sends_what_export_writes(hub, vae, record) -> None:
    address = push_to_hub("me/mine", model=vae, record=record, token="t")
    assert address == "https://hub/me/mine/commit/1"
    assert Hub.calls == [("token", "t"), ("me/mine", True, True)]
    assert rv.load(hub / "me" / "mine").latent == vae.latent
    assert rv.report.read(hub / "me" / "mine" / "audit").rows == record.rows


def test_hub_error_is_one_line(hub, vae, monkeypatch) -> None:
    def refuse(self, *_, **__):
        raise RuntimeError("403\nforbidden")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(StorageError, match="me/mine could not be sent to the Hub: 403 forbidden"):
        push_to_hub("me/mine", model=vae)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "/x", "x/"])
def test_wrong_repository_names_are_refused(name, vae) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        push_to_hub(name, model=vae)


def test_missing_client_is_named(vae, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        push_to_hub("me/mine", model=vae)
