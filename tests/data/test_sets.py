"""The data sets, and what happens where their files are missing or damaged."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustvae import data, errors, seeding
from robustvae.data import dsprites, idx, sets
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


def test_digits_split_fixed_stratified_and_disjoint() -> None:
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
def test_published_files_read_whole(name: str, data_root: Path) -> None:
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
def test_training_sets_have_known_moments(
    name: str, mean: float, stddev: float, data_root: Path
) -> None:
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
def test_truncated_files_are_errors(tmp_path: Path, keep: int, suffix: str) -> None:
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
    with pytest.raises(errors.DataError, match="announces"):
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


def test_unknown_data_names_are_errors() -> None:
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


def test_color_mnist_digit_seven_colors(data_root: Path) -> None:
    gray = data.load("mnist", "test", data_root)
    images = data.load("color_mnist", "test", data_root)
    assert images.shape == (70_000, 3, 28, 28) and not images.in_memory
    digit, color = images.labels["digit"], images.labels["color"]
    assert torch.equal(images.y, digit) and digit[::7].equal(gray.y)
    assert color[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    pairs = (digit * 7 + color).bincount()
    assert pairs.tolist() == gray.y.bincount().repeat_interleave(7).tolist()
    corners = set()
    for i in range(7):
        x = images.read(torch.tensor([7 * 12 + i]))[0]
        lit = x.flatten(1).max(1).values > 0
        corners.add(tuple(lit.tolist()))
        for channel, shown in zip(x, lit, strict=True):
            assert torch.equal(channel, gray.x[12, 0] if shown else torch.zeros(28, 28).float())
    assert len(corners) == 7 and (False, False, False) not in corners
    by_color = data.load("color_mnist+label:color", "test", data_root)
    assert torch.equal(by_color.y, color) and by_color.name == "color_mnist+label:color"
    x, y = by_color.sample(14, stratified=True, generator=seeding.generator(0))
    assert y.bincount().tolist() == [2] * 7
    assert sorted(map(tuple, (x.amax((2, 3)) > 0).tolist())) == sorted([*corners, *corners])


@pytest.mark.slow
def test_the_training_part_of_color_mnist(data_root: Path) -> None:
    images = data.load("color_mnist", root=data_root)
    assert images.shape == (420_000, 3, 28, 28)
    assert images.labels["color"].bincount().tolist() == [60_000] * 7


def sprite(**factors: int) -> int:
    """The number of a sprite, by the published order: the last factor runs fastest."""
    shape, scale, orientation, x, y = (factors.get(name, 0) for name in dsprites.FACTORS)
    return (((shape * 6 + scale) * 40 + orientation) * 32 + x) * 32 + y


def drawn(**factors: int) -> torch.Tensor:
    return dsprites.Sprites().read(torch.tensor([sprite(**factors)]), 0)[0, 0].double()


def test_dsprites_has_the_published_factors() -> None:
    assert dsprites.COUNT == 3 * 6 * 40 * 32 * 32 == 737_280
    assert dsprites.Sprites().shape == (737_280, 1, 64, 64)
    every = torch.tensor(list(itertools.product(range(3), range(6), (0, 17, 39), (0, 31), (0, 31))))
    rows = torch.tensor([sprite(**dict(zip(dsprites.FACTORS, f, strict=True))) for f in every])
    assert torch.equal(torch.stack([*dsprites.factors_of(rows).values()], 1), every)
    train, test = data.load("dsprites"), data.load("dsprites", "test")
    assert len(train) + len(test) == 737_280 and len(test) == 73_728
    for name, size in dsprites.FACTORS.items():
        whole = train.labels[name].bincount() + test.labels[name].bincount()
        assert whole.tolist() == [737_280 // size] * size
        share = test.labels[name].bincount() / len(test) * size
        assert (share - 1).abs().max() < 0.01, "the test part is spread evenly"
    picked = torch.tensor([3, 70_000])
    assert torch.equal(test.labels["scale"][picked], test[picked].labeled_by("scale").y)
    number = sprite(**{name: int(label[70_000]) for name, label in test.labels.items()})
    assert torch.equal(test[70_000].x, dsprites.Sprites().read(torch.tensor([number]), 0))


@pytest.mark.parametrize("shape", range(3))
def test_sprites_stay_inside_the_image(shape: int) -> None:
    for scale, orientation in ((0, 0), (5, 3), (5, 27)):
        kind = {"shape": shape, "scale": scale, "orientation": orientation}
        first = drawn(**kind)
        assert set(first.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(drawn(**kind, x=7), first.roll(7, 1))
        assert torch.equal(drawn(**kind, y=31), first.roll(31, 0))
        for corner in ((0, 0), (31, 0), (0, 31), (31, 31)):
            picture = drawn(**kind, x=corner[0], y=corner[1])
            border = torch.cat([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
            assert not border.any() and picture.sum() == first.sum()
    assert torch.equal(drawn(shape=shape, scale=5), drawn(shape=shape, scale=5, orientation=39))


def test_sprites_area_and_angle() -> None:
    """Areas of the square, the ellipse and the heart (x^2 + y^2 - 1)^3 <= x^2 y^3, about 3.66."""
    (a, b), side, heart = dsprites.HALF_AXES, dsprites.HALF_SIDE, dsprites.HEART
    at = torch.arange(64.0) + 0.5
    for scale in range(6):
        s = 0.5 + 0.1 * scale
        for shape, area in enumerate((4 * side**2, math.pi * a * b, 3.66 * heart**2)):
            rows = [sprite(shape=shape, scale=scale, orientation=k, x=9, y=20) for k in range(40)]
            pictures = dsprites.Sprites().read(torch.tensor(rows), 0)[:, 0].double()
            found = pictures.sum((1, 2)).mean()
            assert abs(float(found) / (area * s**2) - 1) < 0.03
            if shape == 2:
                continue
            mass = pictures / pictures.sum((1, 2), keepdim=True)
            across, down = (mass.sum(1) @ at), (mass.sum(2) @ at)
            assert (across - 25.5).abs().max() < 0.3 and (down - 36.5).abs().max() < 0.3
            if shape == 0 or scale < 5:
                continue
            u, v = at.view(1, 1, -1) - 25.5, at.view(1, -1, 1) - 36.5
            uu, vv, uv = ((mass * m).sum((1, 2)) for m in (u * u, v * v, u * v))
            axis = torch.atan2(2 * uv, uu - vv) / 2  # of the longest axis, modulo pi
            turned = axis - 2 * math.pi / 39 * torch.arange(40)
            assert (torch.sin(turned).abs() < math.sin(math.radians(3))).all()


def test_a_heart_stands_on_its_point() -> None:
    heart = drawn(shape=2, scale=5, x=16, y=16)
    assert torch.equal(heart[:, 1:], heart[:, 1:].flip(1)), "its middle is column 32"
    rows = heart.sum(1)
    filled = rows.nonzero().flatten()
    assert rows[filled[-1]] <= 2 < rows[filled[0]]


@pytest.mark.parametrize("name", ["os:system", "sys:exit", "json:loads"])
def test_functions_that_give_no_images(name):
    """A user may name any function; what it raises is said as the data set's own fault."""
    with pytest.raises(errors.RobustVAEError, match=name):
        data.load(name)
