"""The Hub without a network: the cache's layout, pinned revisions, the size limit."""

from __future__ import annotations

import sys
import types

import pytest

import robustvae as rv
from robustvae.errors import CheckpointError, MissingExtraError
from robustvae.models import checkpoint, hub

COMMIT, OLDER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache as the Hub's client lays it out: blobs, links to them, and refs."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    top = tmp_path / "models--owner--name"
    for part in ("refs", "blobs", "snapshots"):
        (top / part).mkdir(parents=True)
    (top / "refs" / "main").write_text(COMMIT)
    for commit, name in ((COMMIT, "digits-vae"), (OLDER, "digits-lipschitz-vae")):
        snapshot = top / "snapshots" / commit
        snapshot.mkdir()
        for file, content in checkpoint.contents(rv.load(name)).items():
            (top / "blobs" / f"{commit[:4]}-{file}").write_bytes(content)
            (snapshot / file).symlink_to(f"../../blobs/{commit[:4]}-{file}")
    return top


def weights(vae):
    return checkpoint.weights_sha256(vae)


def test_pinned_models_need_no_network(cache):
    newer, older = (rv.load("owner/name", revision=one) for one in (COMMIT, OLDER))
    assert weights(newer) == weights(rv.load("digits-vae"))
    assert weights(older) == weights(rv.load("digits-lipschitz-vae"))
    assert not newer.training


def test_offline_takes_the_main_branch(cache, monkeypatch):
    with pytest.raises(MissingExtraError, match="hub"):
        rv.load("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights(rv.load("owner/name")) == weights(rv.load("digits-vae"))
    with pytest.raises(CheckpointError, match="v2 is not in the cache"):
        rv.load("owner/name", revision="v2")
    with pytest.raises(CheckpointError, match="not in the cache"):
        rv.load("owner/other", revision=COMMIT)


def test_broken_caches_are_not_used(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    assert hub.cached("owner/name") is None
    (cache / "refs" / "main").write_text("../../../etc")
    assert hub.cached("owner/name") is None
    for revision in ("../main", "/etc", "a//b", ""):
        with pytest.raises(CheckpointError, match="revision must be"):
            rv.load("owner/name", revision=revision)


def client(sizes, folder, calls):
    """The part of the Hub's client that is called."""
    fake = types.ModuleType("huggingface_hub")
    files = [types.SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]

    class HfApi:
        def model_info(self, identifier, *, revision, files_metadata):
            calls.append((identifier, revision))
            return types.SimpleNamespace(siblings=files)

    def snapshot_download(identifier, *, revision, allow_patterns):
        calls.append(allow_patterns)
        return str(folder)

    fake.HfApi, fake.snapshot_download = HfApi, snapshot_download
    return fake


def test_sizes_are_asked_before_fetching(cache, monkeypatch):
    calls = []
    sizes = {"model.safetensors": hub.HUB_BYTES, "config.json": 1, "pictures.zip": 2**40}
    snapshot = cache / "snapshots" / COMMIT
    monkeypatch.setitem(sys.modules, "huggingface_hub", client(sizes, snapshot, calls))
    with pytest.raises(CheckpointError, match=r"4\.0 GB of weights.*fetch it yourself"):
        rv.load("owner/name", revision="main")
    assert calls == [("owner/name", "main")]
    sizes["model.safetensors"] = 1000
    monkeypatch.setitem(sys.modules, "huggingface_hub", client(sizes, snapshot, calls))
    vae = rv.load("owner/name")
    assert weights(vae) == weights(rv.load("digits-vae"))
    assert calls[1:] == [("owner/name", None), hub.factories.PATTERNS]
    assert not any(name.endswith((".bin", ".pkl", ".py")) for name in calls[-1])


def test_client_errors_are_one_line(cache, monkeypatch):
    def refuse(*_, **__):
        raise OSError("401 Client Error\n  for url")

    fake = client({}, cache, [])
    fake.HfApi.model_info = refuse
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    with pytest.raises(CheckpointError, match="could not be fetched from the Hub: 401 Client"):
        rv.load("owner/private")
