"""Models of a user's file and of other packages' folders, in Python and on the command line."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import robustvae as rv
from robustvae import cli
from robustvae.errors import CheckpointError, ConfigError, MissingExtraError, ModelError

SOURCE = """
import torch
from torch import nn

import parts_of_mine


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = parts_of_mine.encoder()
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))

    def encode(self, x):
        return self.enc(x).chunk(2, 1)

    def decode(self, z):
        return self.dec(z)


def build():
    return Net().float()


def broken():
    raise ValueError("no GPU here")
"""
PARTS = """
from torch import nn


def encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "parts_of_mine.py").write_text(PARTS)
    state = {
        "enc.1.weight": torch.randn(16, 64, dtype=torch.float32) / 8,
        "enc.1.bias": torch.zeros(16, dtype=torch.float32),
        "dec.0.weight": torch.randn(64, 8, dtype=torch.float32),
        "dec.0.bias": torch.zeros(64, dtype=torch.float32),
    }
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pt")
    return tmp_path


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
def test_a_factory_is_loaded(folder, file):
    vae = rv.load(f"{folder}/mine.py:build", weights=folder / file, pixels=(-1, 1))
    weight = dict(vae.named_parameters())["_owners.0.enc.1.weight"]
    from robustvae.models.factories import read_state

    state = read_state(folder / "w.safetensors")
    assert torch.equal(weight, state["enc.1.weight"])
    assert vae.space.low == -1.0 and not vae.training


def test_bad_factories_are_refused(folder):
    with pytest.raises(CheckpointError, match=r"has no function none: it has .*build"):
        rv.load(f"{folder}/mine.py:none")
    with pytest.raises(CheckpointError, match="there is no file"):
        rv.load(f"{folder}/other.py:build")
    with pytest.raises(ModelError, match=r"broken raised ValueError: no GPU here"):
        rv.load(f"{folder}/mine.py:broken")
    with pytest.raises(CheckpointError, match="must fit Net"):
        save_file({"a": torch.zeros(1)}, folder / "w.safetensors")
        rv.load(f"{folder}/mine.py:build", weights=folder / "w.safetensors")
    with pytest.raises(ConfigError, match="FACTORY"):
        rv.load("digits-vae", weights=folder / "w.safetensors")


class Trap:
    def __reduce__(self):
        return print, ("unpickled",)


def test_pickles_are_never_run(folder, capsys):
    torch.save({"state_dict": Trap()}, folder / "w.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        rv.load(f"{folder}/mine.py:build", weights=folder / "w.pt")
    assert "unpickled" not in capsys.readouterr().out


def test_other_folders_name_their_package(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    try:
        import diffusers  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="diffusers"):
            rv.load(tmp_path)
    else:
        with pytest.raises(CheckpointError, match="safe_serialization"):
            rv.load(tmp_path)


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    return code, out.getvalue(), err.getvalue()


def test_check_on_the_command_line(folder):
    model = (f"{folder}/mine.py:build", "--weights", f"{folder}/w.safetensors")
    code, out, _ = run("check", *model, "--data", "digits", "--pixels", "-1,1")
    assert code == 0 and "pixel_range" in out
    code, out, _ = run("check", *model, "--data", "digits")
    assert code == 1 and "pixels=(-1, 1)" in out
    code, _, err = run("check", *model)
    assert code == 2 and "--data" in err
    code, _, err = run("check", *model, "--data", "digits", "--pixels", "signed")
    assert code == 2 and "LOW,HIGH" in err
