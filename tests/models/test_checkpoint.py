import json

import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

import robustvae as rv
from robustvae import errors
from robustvae.models import checkpoint


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
