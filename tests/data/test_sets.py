"""The data sets, and what happens where their files are missing or damaged."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustvae import data, errors
from robustvae.data import idx, sets
from robustvae.data.idx import read_idx
from robustvae.data.mnist import MNIST

TEST_LABELS = np.repeat(np.arange(10), MNIST.counts["test"]).astype(np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_mnist_test(root: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return folder


def test_digits_split_is_fixed_stratified_and_disjoint() -> None:
    train, test = data.load("digits"), data.load("digits", split="test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.x.dtype == torch.float32
    assert float(train.x.max()) == 1.0
    counts = torch.stack([part.y.bincount() for part in (train, test)])
    assert ((counts[1] / counts.sum(0) - 0.2).abs() < 0.01).all()
    from sklearn.datasets import load_digits

    pixels = torch.tensor(load_digits().images / 16, dtype=torch.float32).flatten(1)
    together = torch.cat([train.x, test.x]).flatten(1)
    order = lambda rows: sorted(map(tuple, rows.tolist()))  # noqa: E731
    assert order(together) == order(pixels)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_published_files(name: str, data_root: Path) -> None:
    images = data.load(name, split="test", root=data_root)
    assert images.x.shape == (10000, 1, 28, 28)
    assert (images.name, images.split) == (name, "test")
    published = sets.ON_DISK[name]
    assert images.y.bincount().tolist() == list(published.counts["test"])
    for file in idx.FILES["test"]:
        stored = (data_root / published.folder / f"{file}.gz").read_bytes()
        assert hashlib.md5(stored, usedforsecurity=False).hexdigest() == published.md5[file]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "stddev"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)]
)
def test_training_sets(name: str, mean: float, stddev: float, data_root: Path) -> None:
    images = data.load(name, root=data_root)
    assert images.x.shape == (60000, 1, 28, 28)
    assert float(images.x.mean()) == pytest.approx(mean, abs=1e-4)
    assert float(images.x.std()) == pytest.approx(stddev, abs=1e-4)


def test_raw_and_gzipped_files(tmp_path: Path) -> None:
    pixels = np.zeros((10000, 28, 28), np.uint8)
    pixels[3, 1, 2] = 51
    write_mnist_test(tmp_path, pixels, TEST_LABELS)
    images = data.load("mnist", split="test", root=tmp_path)
    assert float(images.x[3, 0, 1, 2]) == pytest.approx(0.2)
    assert images.x.count_nonzero() == 1
    assert images.y.tolist() == TEST_LABELS.tolist()


def test_other_counts_are_refused(tmp_path: Path) -> None:
    few = write_mnist_test(tmp_path, np.zeros((5, 28, 28)), TEST_LABELS)
    with pytest.raises(errors.DataError, match=r"wanted 10000 images of 28x28"):
        data.load("mnist", split="test", root=tmp_path)
    (few / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((10000, 28, 28))))
    swapped = np.where(TEST_LABELS == 3, 8, TEST_LABELS)
    (few / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(swapped)))
    with pytest.raises(errors.DataError, match="wanted class counts"):
        data.load("mnist", split="test", root=tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 10, 15, 40])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_truncated_files(tmp_path: Path, keep: int, suffix: str) -> None:
    whole = idx_bytes(np.arange(60).reshape(3, 4, 5))
    path = tmp_path / f"file{suffix}"
    path.write_bytes((gzip.compress(whole) if suffix else whole)[:keep])
    with pytest.raises(errors.DataError, match=f"file{suffix}") as caught:
        read_idx(path, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"not an IDX file at all", idx_bytes(np.zeros(7)), b"\0" * 99])
def test_another_magic_number(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(errors.DataError, match="magic number"):
        read_idx(tmp_path / "file", 3)


def test_a_header_that_announces_too_much(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + b"\xff" * 12
    (tmp_path / "file").write_bytes(header + b"\0" * 10)
    with pytest.raises(errors.DataError, match="truncated"):
        read_idx(tmp_path / "file", 3)


def test_missing_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.DataError, match="download=True") as caught:
        data.load("mnist", root=tmp_path)
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    monkeypatch.setenv("ROBUSTVAE_DATA", str(tmp_path / "named"))
    assert sets.data_root() == tmp_path / "named"
    assert sets.data_root(tmp_path) == tmp_path
    monkeypatch.delenv("ROBUSTVAE_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sets.data_root() == tmp_path / ".cache" / "robustvae"


def test_unknown_names() -> None:
    with pytest.raises(errors.UnknownNameError, match="did you mean 'mnist'"):
        data.load("mnits")
    with pytest.raises(errors.UnknownNameError, match="train"):
        data.load("digits", split="trian")


def test_download_checks_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = write_mnist_test(tmp_path, np.zeros((10000, 28, 28)), TEST_LABELS)
    for file in idx.FILES["test"]:
        if (published / file).exists():
            (published / f"{file}.gz").write_bytes(gzip.compress((published / file).read_bytes()))
    md5 = {
        file: hashlib.md5(
            (published / f"{file}.gz").read_bytes(), usedforsecurity=False
        ).hexdigest()
        for file in idx.FILES["test"]
    }
    there = replace(MNIST, url=f"{published.as_uri()}/", md5=md5)
    monkeypatch.setitem(sets.ON_DISK, "mnist", there)
    assert len(data.load("mnist", "test", tmp_path / "new", download=True)) == 10000
    assert len(data.load("mnist", "test", tmp_path / "new")) == 10000

    monkeypatch.setitem(sets.ON_DISK, "mnist", replace(there, md5=MNIST.md5))
    with pytest.raises(errors.DataError, match="MD5"):
        data.load("mnist", "test", tmp_path / "newer", download=True)
    assert not list((tmp_path / "newer").rglob("*ubyte*"))
    with pytest.raises(errors.DataError, match="cannot be downloaded"):
        data.load("mnist", "train", tmp_path / "new", download=True)
