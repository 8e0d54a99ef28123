"""npz files and folders of images: what is read, and what is said of what is wrong with them."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import robustvae as rv
from robustvae import data, errors
from robustvae.data import celeba
from robustvae.data.arrays import read_npz
from robustvae.data.folder import fitted, read_folder
from robustvae.data.listing import FileList

from .conftest import pixels, write_faces, write_photos


def refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(errors.DataError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(tmp_path: Path, save: Callable[..., None]) -> None:
    arrays = {"a": pixels(3, 4, 5), "b": np.arange(6.0).reshape(2, 3).T, "c": np.array([1, -2])}
    save(tmp_path / "x.npz", **arrays)
    found = read_npz(tmp_path / "x.npz")
    assert {name: isinstance(value, np.memmap) for name, value in found.items()} == dict.fromkeys(
        arrays, save is np.savez
    )
    for name, value in arrays.items():
        assert np.array_equal(found[name], value) and found[name].dtype == value.dtype


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_and_damaged_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "x.npz"
    save(path, images=pixels(20, 8, 8))
    whole = path.read_bytes()
    for keep in (0, 1, 30, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        refused(lambda: read_npz(path), "x.npz cannot be read, it may be truncated")
    if save is np.savez_compressed:
        path.write_bytes(whole[:300] + bytes(50) + whole[350:])
        refused(lambda: read_npz(path), "cannot be read")
    refused(lambda: read_npz(tmp_path / "none.npz"), "none.npz cannot be read")
    (tmp_path / "text.npz").write_text("no archive")
    refused(lambda: read_npz(tmp_path / "text.npz"), "cannot be read")


KINDS = ["x.npz", "x.npy", "x.safetensors"]


def write_images(path: Path, images: np.ndarray) -> Path:
    """A file of one array, uncompressed, of the kind that its name says."""
    if path.suffix == ".npz":
        np.savez(path, images=images)
    elif path.suffix == ".npy":
        np.save(path, images)
    else:
        save_file({"images": images, "labels": np.arange(len(images)) % 3}, path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", KINDS)
def test_arrays_on_disk_equal_memory(tmp_path: Path, name: str, dtype: type) -> None:
    bytes_ = pixels(30, 5, 4)
    white = {np.uint8: 255, np.uint16: 65535}.get(dtype)
    array = (bytes_ / 255).astype(dtype) if white is None else bytes_.astype(dtype) * (white // 255)
    path = write_images(tmp_path / name, array)
    images = data.as_images(path)
    assert not images.in_memory and images.shape == (30, 1, 5, 4)
    rows = torch.tensor([29, 3, 3, 11])
    torch.testing.assert_close(
        images.read(rows)[:, 0], torch.from_numpy(bytes_).float()[rows] / 255, rtol=0, atol=5e-4
    )
    again = data.load(data.read_folder(path, "test").name, "test")
    assert torch.equal(again.x, data.read_folder(path, "test").x) and len(again) == 3


@pytest.mark.parametrize("name", KINDS[1:])
def test_damaged_arrays_are_refused(tmp_path: Path, name: str) -> None:
    path = write_images(tmp_path / name, pixels(20, 8, 8))
    whole = path.read_bytes()
    for keep in (0, 1, 9, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        refused(lambda: read_folder(path), f"{name} cannot be read|must hold an array")
    np.savez(tmp_path / "other.npz", images=pixels(2, 8, 8))
    np.save(tmp_path / "objects.npy", np.array([path], dtype=object), allow_pickle=True)
    others = [tmp_path / "other.npz", tmp_path / "objects.npy"]
    for content in (b"\xff" * 200, *(other.read_bytes() for other in others)):
        path.write_bytes(content)
        refused(lambda: read_folder(path), "cannot be read")


@pytest.mark.parametrize("values", [(0.0, 1.0), (-1.0, 1.0)])
def test_mapped_array_in_a_space(tmp_path: Path, values: tuple[float, float]) -> None:
    """The whole array decides whether it lies in [0, 1], not the few inputs that are read."""
    space = data.InputSpace((2, 6), low=-1, high=1)
    array = np.linspace(0, 1, 12 * 9, dtype=np.float32).reshape(9, 2, 6)
    array[-1, 0, 0] = values[0]
    np.save(tmp_path / "x.npy", array)
    images = data.as_images(np.load(tmp_path / "x.npy", mmap_mode="r"), space=space)
    assert not images.in_memory
    in_memory = data.as_images(array, space=space)
    assert torch.equal(images.read(torch.tensor([2, 8])), in_memory.x[[2, 8]].float())


def test_pixels_on_disk_are_checked(tmp_path: Path) -> None:
    array = np.full((4, 3, 3), 0.5, dtype=np.float32)
    array[2, 0, 0] = 7.0
    np.save(tmp_path / "x.npy", array)
    images = data.as_images(tmp_path / "x.npy")
    images.read(torch.tensor([0, 1]))
    with pytest.raises(errors.RangeError, match="7"):
        images.read(torch.tensor([1, 2]))


def test_wide_array_takes_little_memory(tmp_path: Path) -> None:
    """A file of 4 GB, of which nothing was written: what is read of it is what is asked for."""
    array = np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(1_000_000, 64, 64)
    )
    array[::500_000] = 255
    del array
    tracemalloc.start()
    images = data.as_images(tmp_path / "x.npy")
    chosen = images[images.choose(100, generator=rv.generator(0))]
    assert float(images.read(torch.tensor([500_000])).min()) == 1 and chosen.x.shape[0] == 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6


def test_pickled_objects_in_npz_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Calls:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {trace}",)

    np.savez(tmp_path / "x.npz", images=np.array([Calls()], dtype=object))
    refused(lambda: read_npz(tmp_path / "x.npz"), "pickled objects, which are not read")
    assert not trace.exists()


def test_header_announces_more_than_there(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pixels(3, 4, 5))
    content = (tmp_path / "x.npy").read_bytes()
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", kind) as archive:
            archive.writestr("images.npy", content.replace(b"(3, 4, 5)", b"(99,4, 5)"))
        refused(lambda: read_npz(tmp_path / "x.npz"), "announces 1980 bytes, holds 60")


def test_the_recompressed_cifar10(data_root: Path) -> None:
    images = data.load("cifar10", "test", data_root)
    assert images.name == "cifar10_jpeg", "the files say JPEG; results must too"
    assert images.y.bincount().tolist() == [1000] * 10
    assert images.y[:12].tolist() == [*range(10), 0, 1]
    stored = np.load(data_root / "cifar10" / "test.npz")["images"][7:9]
    found = images.read(torch.tensor([7, 8])).mul(255).round().byte()
    assert torch.equal(found, torch.tensor(stored).movedim(3, 1))


@pytest.mark.slow
def test_training_part_of_recompressed_cifar10(data_root: Path) -> None:
    assert data.load("cifar10", "train", data_root).y.bincount().tolist() == [1800] * 10


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(10_000, 4, 4, 3)}, "must hold arrays images and labels"),
        ({"images": pixels(10, 4, 4, 3), "labels": np.arange(10)}, "wanted bytes of .N, 32, 32, 3"),
        ({"images": pixels(10, 32, 32, 3), "labels": np.arange(10)}, "wanted 1,000 images of each"),
        ({"images": pixels(10, 32, 32, 3), "labels": np.arange(9)}, "labels of its 10 images"),
        ({"images": pixels(10, 32, 32, 3), "labels": np.ones(10)}, "wanted whole numbers"),
        ({"images": pixels(9, 32, 32, 3), "labels": np.arange(9) - 1}, "wanted 1,000 images"),
        ({"images": pixels(9, 32, 32, 3), "labels": np.arange(9) + 9}, "wanted 1,000 images"),
    ],
)
def test_other_files_are_not_cifar10(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    (tmp_path / "cifar10").mkdir()
    np.savez_compressed(tmp_path / "cifar10" / "test.npz", **arrays)
    for name in ("cifar10", "cifar10_jpeg"):
        refused(lambda name=name: data.load(name, "test", tmp_path), message)


def test_classes_folders_tenth_testing(tmp_path: Path) -> None:
    write_photos(tmp_path, count=20)
    train, test = (read_folder(tmp_path, split, crop=20, size=10) for split in ("train", "test"))
    assert train.y.bincount().tolist() == [18, 18] and test.y.bincount().tolist() == [2, 2]
    assert train.shape == (36, 3, 10, 10)
    path = tmp_path / "dogs" / "09.png"
    alone = torch.tensor(np.array(Image.open(path))).movedim(2, 0).unsqueeze(0) / 255
    wanted = fitted(alone.float(), 20, 10, path)
    assert torch.equal(test.read(torch.tensor([2])), wanted)
    assert data.load(train.name, "test")[2].x.equal(wanted)
    assert data.load("folder", "test", tmp_path / "dogs")[0].image_shape[0] == 3


def test_folders_train_and_test(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("test", 3)):
        write_photos(tmp_path / split, count)
    assert len(read_folder(tmp_path, "train", size=8)) == 10
    assert len(read_folder(tmp_path, "test", size=8)) == 6
    for part in ("cats", "dogs"):
        for path in (tmp_path / "test" / part).iterdir():
            path.unlink()
    refused(lambda: read_folder(tmp_path, "test"), "test or the folders in it must hold")


def test_files_train_and_test(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", images=pixels(6, 8, 8))
    np.savez(tmp_path / "test.npz", images=pixels(4, 8, 8), labels=np.arange(4))
    assert read_folder(tmp_path, "train").y.tolist() == [0] * 6
    assert read_folder(tmp_path, "test", size=4).shape == (4, 1, 4, 4)
    (tmp_path / "test.npz").unlink()
    refused(lambda: read_folder(tmp_path, "test"), "test.npz cannot be read")
    np.savez(tmp_path / "test.npz", pictures=pixels(4, 8, 8))
    refused(lambda: read_folder(tmp_path, "test"), "an array named images, got pictures")
    np.savez(tmp_path / "test.npz", images=pixels(4, 8, 8))
    refused(lambda: read_folder(tmp_path, "test", channels=3), "3 channels, got 1")


def test_color_and_gray(tmp_path: Path) -> None:
    gray, color = pixels(1, 8, 8)[0], pixels(1, 8, 8, 3)[0]
    for i in range(4):
        Image.fromarray(gray if i % 2 else color).save(tmp_path / f"{i}.png")
    assert read_folder(tmp_path).image_shape == (3, 8, 8)
    x = read_folder(tmp_path).x
    assert torch.equal(x[1], (torch.tensor(gray) / 255).float().expand(3, 8, 8))
    one = read_folder(tmp_path, channels=1).x
    luma = torch.tensor(color).double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert (one[0, 0] * 255 - luma).abs().max() <= 1


def test_the_square_in_the_middle() -> None:
    x = torch.arange(35.0).view(1, 1, 5, 7) / 34
    assert torch.equal(fitted(x, 3, None, Path("x")), x[..., 1:4, 2:5])
    assert torch.equal(fitted(x, None, 5, Path("x")), x[..., :, 1:6])
    small = fitted(x[..., :4, :4], None, 2, Path("x"))
    assert small.shape == (1, 1, 2, 2)
    torch.testing.assert_close(small.mean(), x[..., :4, :4].mean())
    flat = fitted(torch.full((1, 1, 37, 37), 0.3), None, 16, Path("x"))
    torch.testing.assert_close(flat, torch.full((1, 1, 16, 16), 0.3))
    refused(lambda: fitted(x, 6, None, Path("x")), "no square of 6 pixels")


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    refused(lambda: read_folder(tmp_path / "none"), "must be a folder of images, or a file")
    refused(lambda: read_folder(tmp_path), "must hold files ending in")
    refused(lambda: data.load("folder"), "needs a path")
    write_photos(tmp_path)
    refused(lambda: read_folder(tmp_path).x, "where the first image is of")
    (tmp_path / "cats" / "03.png").write_bytes((tmp_path / "cats" / "03.png").read_bytes()[:90])
    refused(lambda: read_folder(tmp_path, size=8).x, "03.png cannot be read as an image")
    (tmp_path / "cats" / "03.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    refused(lambda: read_folder(tmp_path, size=8).x, "03.png cannot be read as an image")
    few = tmp_path / "few"
    few.mkdir()
    Image.fromarray(pixels(1, 8, 8)[0]).save(few / "a.png")
    assert len(read_folder(few, "test")) == len(read_folder(few, "train")) == 1
    for wrong, error in (
        ({"size": 0}, errors.RangeError),
        ({"crop": "x"}, errors.DtypeError),
        ({"channels": 2}, errors.RangeError),
        ({"split": "valid"}, errors.UnknownNameError),
    ):
        with pytest.raises(error):
            read_folder(few, **wrong)


def test_name_keeps_plus_of_its_path(tmp_path: Path) -> None:
    write_photos(tmp_path / "a+b+static")
    images = data.load(f"folder:{tmp_path}/a+b+static/cats+size:6+static")
    assert images.image_shape == (3, 6, 6) and images[:4].x.unique().tolist() == [0, 1]
    assert images.name == f"folder:{tmp_path}/a+b+static/cats+size:6+static"


def test_faces_with_their_attributes(tmp_path: Path) -> None:
    write_faces(tmp_path)
    train, test = (read_folder(tmp_path, split, crop=18) for split in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert list(test.labels) == ["Smiling", "Young"]
    assert test.labels["Young"].tolist() == [0, 0]
    assert train.y.tolist() == [0, 1, 1, 0, 0, 1, 1, 0]
    third = torch.tensor(np.array(Image.open(tmp_path / "img_align_celeba" / "000003.jpg"))) / 255
    assert torch.equal(test[0].x[0], third.float().movedim(2, 0)[:, 2:20, :])

    before = test.x
    nested = tmp_path / "img_align_celeba"
    nested.rename(tmp_path / "aside")
    nested.mkdir()
    (tmp_path / "aside").rename(nested / "img_align_celeba")
    text = (tmp_path / "list_eval_partition.txt").read_text()
    (tmp_path / "list_eval_partition.txt").unlink()
    table = "image_id,partition\n" + text.replace(" ", ",")
    (tmp_path / "list_eval_partition.csv").write_text(table)
    (tmp_path / "list_attr_celeba.txt").unlink()
    again = read_folder(tmp_path, "test", crop=18)
    assert torch.equal(again.x, before) and again.y.tolist() == [0, 0]


def test_what_is_wrong_with_faces(tmp_path: Path) -> None:
    folder = write_faces(tmp_path / "celeba")
    refused(lambda: data.load("celeba", "test", tmp_path), "no square of 148")
    attributes = folder / "list_attr_celeba.txt"
    whole = attributes.read_text()
    attributes.write_text(whole.replace("000003.jpg  -1 -1", "000003.jpg  -1"))
    refused(lambda: read_folder(folder, "test"), "one value for each attribute")
    attributes.write_text(whole.replace("000003.jpg  -1 -1", "000003.jpg  -1 yes"))
    refused(lambda: read_folder(folder, "test"), "must hold numbers")
    attributes.write_bytes(b"\xff\xfe\x00")
    refused(lambda: read_folder(folder, "test"), "cannot be read")
    (folder / "img_align_celeba" / "000003.jpg").unlink()
    refused(lambda: read_folder(folder, "test"), "1 of the 2 images of the test split")
    (folder / "list_eval_partition.txt").write_text("")
    refused(lambda: read_folder(folder, "test"), "0 of the 0 images")


def test_celeba_of_other_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faces(tmp_path / "celeba")
    monkeypatch.setattr(celeba, "CROP", 18)
    refused(lambda: data.load("celeba", "test", tmp_path), "wanted 19,962 images, got 2")
    monkeypatch.setattr(celeba, "COUNTS", {"train": 8, "test": 2})
    images = data.load("celeba", "test", tmp_path)
    assert (images.name, images.image_shape) == ("celeba", (3, 64, 64))


def test_files_of_no_class_are_read(tmp_path):
    for number in range(3):
        Image.fromarray(pixels(8, 8, 3)).save(tmp_path / f"{number}.png")
    images = read_folder(tmp_path, "test")
    assert images.y.tolist() == [0, 0, 0]
    assert images.class_name(0) == "label 0"


def test_list_of_files_gives_paths(tmp_path):
    groups = [(tmp_path / "a", ["0.png", "é.png"]), (tmp_path / "b", []), (tmp_path / "c", ["x"])]
    files = FileList(groups)
    paths = [folder / name for folder, names in groups for name in names]
    assert list(files) == paths and len(files) == 3
    assert files[-1] == paths[-1] and files[1:] == paths[1:]
    assert [count for _, count in files.groups()] == [2, 1]
    with pytest.raises(IndexError):
        files[3]


def test_a_file_costs_few_bytes(tmp_path):
    names = [f"image-{number:07d}.png" for number in range(20_000)]
    tracemalloc.start()
    files = FileList([(tmp_path, names)])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files) == 20_000 and held < 40 * 20_000
