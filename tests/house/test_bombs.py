"""Small files that stand for gigabytes, each refused in under a second and 500 MB."""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import robustvae as rv
from robustvae.data.batches import read_batch
from robustvae.data.idx import read_idx
from robustvae.errors import RobustVAEError
from robustvae.training import Recipe

pytestmark = pytest.mark.slow
SECONDS, MEGABYTES = 1.0, 500.0
BUNDLED = Path(rv.__file__).parent / "zoo_files" / "digits-vae"
ZEROS = bytes(2**20)


def model(folder: Path, config: str) -> Callable[[], object]:
    (folder / "model.safetensors").write_bytes((BUNDLED / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(config)
    return lambda: rv.load(folder)


def huge_layers(folder: Path) -> Callable[[], object]:
    config = json.loads((BUNDLED / "config.json").read_text())
    text = json.dumps(config).replace("[128, 128]", "[60000, 60000]")
    assert "60000" in text
    return model(folder, text)


def many_layers(folder: Path) -> Callable[[], object]:
    text = (BUNDLED / "config.json").read_text()
    layers = json.dumps([8] * 100_000)
    return model(folder, json.dumps(json.loads(text)).replace("[128, 128]", layers))


def deep_config(folder: Path) -> Callable[[], object]:
    return model(folder, "[" * 100_000)


def sparse_weights(folder: Path) -> Callable[[], object]:
    load = model(folder, (BUNDLED / "config.json").read_text())
    os.truncate(folder / "model.safetensors", 6 * 2**30)
    return load


def deep_yaml(folder: Path) -> Callable[[], object]:
    path = folder / "deep.yaml"
    path.write_text("[" * 100_000)
    return lambda: Recipe.read(path)


def deep_plan(folder: Path) -> Callable[[], object]:
    path = folder / "plan.yaml"
    path.write_text("a: " + "{a: " * 50_000)
    images = rv.data.load("digits", split="test")
    vae = rv.load("digits-vae")
    return lambda: rv.audit(vae, images, plan=path)


def zipped_idx(folder: Path) -> Callable[[], object]:
    path = folder / "images.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(struct.pack(">4i", 0x0803, 1_400_000, 28, 28))
        for _ in range(1024):
            file.write(ZEROS)
    return lambda: read_idx(path, 3)


def zipped_npz(folder: Path) -> Callable[[], object]:
    path = folder / "images.npz"
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': (16777216, 8, 8), }"
    head += b" " * (118 - 1 - len(head)) + b"\n"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("images.npy", "w") as file,
    ):
        file.write(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
        for _ in range(1024):
            file.write(ZEROS)
    return lambda: rv.data.read_folder(path)


def wide_picture(folder: Path) -> Callable[[], object]:
    for name in ("0.png", "1.png", "2.png"):
        Image.new("1", (13_000, 13_000)).save(folder / name)
    return lambda: rv.data.load(f"folder:{folder}").x


def wide_size(folder: Path) -> Callable[[], object]:
    Image.new("L", (8, 8)).save(folder / "0.png")
    return lambda: rv.data.load(f"folder:{folder}+size:30000").x


def wide_blur(folder: Path) -> Callable[[], object]:
    return lambda: rv.data.load("digits+blur:1e9")[:2].x


def marked_batch(folder: Path) -> Callable[[], object]:
    path = folder / "batch"
    path.write_bytes(b"\x80\x02" + b"(" * 10**6 + b"0" * 10**6 + b".")
    return lambda: read_batch(path)


BOMBS = (
    *(huge_layers, many_layers, deep_config, sparse_weights, deep_yaml, deep_plan, zipped_idx),
    *(zipped_npz, wide_picture, wide_size, wide_blur, marked_batch),
)


def measured(call: Callable[[], object]) -> tuple[str, float, float]:
    """What a call raises, in a child: its name, CPU seconds, and megabytes beyond the parent's."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        # what is imported for the first time is no part of the bomb
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin, name = time.process_time(), "nothing"
        try:
            call()
        except RobustVAEError:
            name = "ours"
        except BaseException as error:
            name = repr(error)[:200]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = [name, time.process_time() - begin, max(0, peak - before) / 1024]
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        content = stream.read()
    _, status = os.waitpid(pid, 0)
    assert content, f"the child ended with {status}"
    name, seconds, megabytes = json.loads(content)
    return name, seconds, megabytes


@pytest.fixture(scope="module", autouse=True)
def _everything_imported() -> None:
    """What is imported, or read, at the first use is no part of a bomb."""
    rv.load("digits-vae")
    rv.data.load("digits+blur:1.0", split="test")[:1].read(torch.tensor([0]))
    rv.check(rv.load("digits-vae"), rv.data.load("digits", split="test")[:2])
    Recipe.read("digits-vae")


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_bomb_is_refused_early(bomb, tmp_path):
    call = bomb(tmp_path)
    name, seconds, megabytes = measured(call)
    print(f"{bomb.__name__}: {name}, {seconds:.2f} CPU s, {megabytes:.0f} MB")
    assert name == "ours"
    assert seconds < SECONDS and megabytes < MEGABYTES
