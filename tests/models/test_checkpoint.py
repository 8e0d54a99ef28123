import importlib
import json
import sys

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.models import checkpoint
from robustvae.training import train_recipe


@pytest.fixture
def vae():
    return rv.models.create("vae", architecture="conv8", latent=2).float()


def test_round_trip_keeps_every_bit(vae, tmp_path):
    again = checkpoint.load(checkpoint.save(vae, tmp_path / "a", card={"epochs": 3}))
    assert not again.training
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(vae)
    assert checkpoint.read_config(tmp_path / "a")["card"] == {"epochs": 3}


def test_half_precision_is_for_storage(vae, tmp_path):
    again = checkpoint.load(checkpoint.save(vae, tmp_path, dtype="float16"))
    assert again.dtype == torch.float32
    assert_close(again.state_dict(), {k: t.half().float() for k, t in vae.state_dict().items()})
    stored = checkpoint.read_config(tmp_path)["sha256"]
    assert checkpoint.weights_sha256(again) == stored != checkpoint.weights_sha256(vae)
    assert checkpoint.weights_sha256(checkpoint.load(tmp_path)) == stored


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip(folder):
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "model.safetensors").unlink(),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_text("[1]"),
        lambda f: edit(f, format=2),
        lambda f: edit(f, model="transformer"),
        lambda f: edit(f, dtype="int7"),
        lambda f: edit(f, sha256="0"),
        lambda f: edit(f, options={"latent": 5, "architecture": "conv8"}),
        lambda f: edit(f, options={"depth": 5}),
        lambda f: edit(f, options={"latent": "many"}),
        lambda f: edit(f, card=None),
        lambda f: edit(f, card=[1]),
    ],
)
def test_damaged_checkpoints_refused_in_one_line(vae, tmp_path, damage):
    damage(checkpoint.save(vae, tmp_path))
    with pytest.raises(errors.CheckpointError) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.int8])
def test_other_types_are_refused_by_name(vae, tmp_path, dtype):
    checkpoint.save(vae, tmp_path)
    path = tmp_path / "model.safetensors"
    state = safetensors.torch.load(path.read_bytes())
    state["mean_head.bias"] = state["mean_head.bias"].to(dtype)
    try:
        path.write_bytes(safetensors.torch.save(state))
    except KeyError:
        pytest.skip(f"this safetensors cannot write {dtype}")
    says = f"'mean_head.bias' as floats or integers, got {dtype}"
    with pytest.raises(errors.CheckpointError, match=says):
        checkpoint.load(tmp_path)


def test_error_names_the_right_dtype(vae, tmp_path):
    low = vae.bfloat16()
    with pytest.raises(errors.UnknownNameError, match="bfloat16"):
        checkpoint.save(low, tmp_path / "a")
    again = checkpoint.load(checkpoint.save(low, tmp_path / "b", dtype="float32"))
    assert_close(again.state_dict(), {k: t.float() for k, t in low.state_dict().items()})
    assert checkpoint.weights_sha256(low) != checkpoint.weights_sha256(again)


def test_pickled_files_are_never_opened(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(errors.CheckpointError, match="never opened"):
        checkpoint.load(path)


def test_bad_weights_are_not_written(vae, tmp_path):
    with torch.no_grad():
        vae.mean_head.bias[0] = float("nan")
    with pytest.raises(errors.NonFiniteError, match=r"mean_head\.bias"):
        checkpoint.save(vae, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_wrapped_models_cannot_be_saved(tmp_path):
    mine = rv.wrap(encode=lambda x: x, decode=lambda z: z, latent=2, image_shape=(1, 2, 2))
    with pytest.raises(errors.UnknownNameError):
        checkpoint.save(mine, tmp_path / "a")
    assert checkpoint.weights_sha256(mine) is None


PLAIN_MODEL = '''
import torch
from robustvae import VAE
from robustvae.models import Bernoulli, Gaussian
from torch import nn

class Plain(VAE):
    """One linear layer each way."""

    def __init__(self, latent=3, width=64):
        super().__init__()
        self.latent, self.image_shape = latent, (1, 8, 8)
        self.inner, self.outer = nn.Linear(width, latent), nn.Linear(latent, width)

    def encode(self, x):
        mean = self.inner(x.flatten(1))
        return Gaussian(mean, torch.full_like(mean, 0.3))

    def decode(self, z):
        return Bernoulli(self.outer(z).reshape(-1, 1, 8, 8))

    @property
    def config(self):
        return {"latent": self.latent}

class Silent(Plain):
    """It does not say its own arguments."""
    config = VAE.config
'''


@pytest.fixture
def plain_module(tmp_path, monkeypatch):
    """A user's module that registers nothing; its code runs only where it is imported."""
    (tmp_path / "plain_kit.py").write_text(PLAIN_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("plain_kit")
    sys.modules.pop("plain_kit", None)


def test_classes_are_saved_by_path(plain_module, tmp_path):
    mine = plain_module.Plain(latent=2)
    folder = checkpoint.save(mine, tmp_path / "a")
    assert checkpoint.read_config(folder)["model"] == "plain_kit:Plain"
    again = rv.load(folder)
    assert type(again) is plain_module.Plain and again.latent == 2
    assert checkpoint.weights_sha256(again) == checkpoint.weights_sha256(mine)
    with pytest.raises(errors.UnknownNameError, match="config"):
        checkpoint.save(plain_module.Silent(), tmp_path / "b")


def test_paths_in_checkpoints_run_nothing(plain_module, tmp_path):
    folder = checkpoint.save(plain_module.Plain(), tmp_path / "a")
    del sys.modules["plain_kit"]
    with pytest.raises(errors.CheckpointError, match=r"import the module.*--weights FOLDER"):
        rv.load(folder)
    assert "plain_kit" not in sys.modules
    again = rv.load("plain_kit:Plain", folder)  # the user names the class, which imports it
    assert type(again) is sys.modules["plain_kit"].Plain
    with pytest.raises(errors.ConfigError, match="needs a checkpoint's folder"):
        rv.load("plain_kit:Plain")
    with pytest.raises(errors.CheckpointError, match="must hold a plain_kit:Silent"):
        rv.load("plain_kit:Silent", folder)


def test_other_code_is_not_called(plain_module, tmp_path):
    folder = checkpoint.save(plain_module.Plain(), tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model": "os:system", "options": {"command": f"touch {tmp_path / 'called'}"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.CheckpointError, match="os:system"):
        rv.load(folder)
    assert not (tmp_path / "called").exists()


def test_unsavable_models_are_not_trained(tmp_path):
    mine = rv.wrap(encode=lambda x: x, decode=lambda z: z, latent=2, image_shape=(1, 2, 2))
    recipe = tmp_path / "more.yaml"
    recipe.write_text(
        "name: more\nstart: digits-vae\ndata: {name: digits}\n"
        "objective: {name: elbo}\ntraining: {epochs: 1}\n"
    )
    with pytest.raises(errors.UnknownNameError, match="above it"):
        train_recipe(str(recipe), tmp_path / "run", start=mine, progress=False)
