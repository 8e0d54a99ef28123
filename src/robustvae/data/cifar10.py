"""CIFAR-10: 32x32 color photographs of ten kinds [Krizhevsky, 2009]."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch

from robustvae.data.arrays import Pixels, labels_of, read_npz
from robustvae.data.batches import read_batch
from robustvae.data.idx import fetch
from robustvae.data.images import Images
from robustvae.errors import DataError
from robustvae.records import write_files

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
EACH = {"train": (5000, 1800), "test": (1000,)}


def load(split: str, root: Path, download: bool) -> Images:
    """The published batches where they lie in `root`, else the npz files of `load_jpeg`.

    Args:
        split: "train" or "test".
        root: The folder above cifar-10-batches-py.
        download: Fetch the published archive if there are neither.

    Returns:
        Images named "cifar10", or "cifar10_jpeg", read as they are asked for.

    Raises:
        DataError: Missing, truncated, or not the set it claims to be.
    """
    paths = [root / FOLDER / name for name in BATCHES[split]]
    there = all(path.is_file() for path in paths)
    if not there and _npz(split, root).is_file():
        return load_jpeg(split, root)
    if not there and download:
        _download(root)
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"cifar10 is missing: looked for {path} and {_npz(split, root)}; fetch {URL} and "
                f"unpack it in {root}, or name the folder above {FOLDER} with root= or "
                "ROBUSTVAE_DATA, or pass download=True"
            )
    batches = [_read(path) for path in paths]
    pixels = np.concatenate([part for part, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([part for _, part in batches])
    return _checked(Pixels(pixels), labels, "cifar10", split, root / FOLDER)


def load_jpeg(split: str, root: Path) -> Images:
    """CIFAR-10 kept as cifar10/train.npz and test.npz, from JPEG copies of its images.

    Warning:
        The images went through JPEG at quality 75 and differ from the published ones; the
        training part has 1,800 of each class, or all 5,000. Likelihoods do not compare.

    Args:
        split: "train" or "test".
        root: The folder above cifar10.

    Raises:
        DataError: Missing, truncated, or of other counts.
    """
    path = _npz(split, root)
    if not path.is_file():
        raise DataError(
            f"cifar10_jpeg is missing: looked for {path}, with images (N, 32, 32, 3) and labels "
            "(N,) of bytes; name the folder above cifar10 with root= or ROBUSTVAE_DATA"
        )
    arrays = read_npz(path)
    if not {"images", "labels"} <= arrays.keys():
        raise DataError(f"{path} must hold arrays images and labels, got {', '.join(arrays)}")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise DataError(
            f"{path} is not CIFAR-10: wanted bytes of (N, 32, 32, 3), "
            f"got {images.dtype} of {images.shape}"
        )
    return _checked(Pixels(images, last=True), arrays["labels"], "cifar10_jpeg", split, path)


def _npz(split: str, root: Path) -> Path:
    return root / "cifar10" / f"{split}.npz"


def _checked(source: Pixels, labels: np.ndarray, name: str, split: str, where: Path) -> Images:
    y = labels_of(labels, source.shape[0], where)
    counts = torch.bincount(y.clamp(0, len(CLASSES)), minlength=len(CLASSES)).tolist()
    counts_allowed = [
        [each] * len(CLASSES) for each in EACH[split][: 1 if name == "cifar10" else None]
    ]
    if counts not in counts_allowed or int(y.min()) < 0:
        totals = " or ".join(f"{each:,}" for (each, *_) in counts_allowed)
        raise DataError(
            f"{where} is not the {split} split of {name}: "
            f"wanted {totals} images of each class, got {counts}"
        )
    return Images(source, y, name=name, split=split)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = read_batch(path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise DataError(
            f"{path} must be a batch of CIFAR-10 with an array of bytes named data: fetch it again"
        )
    if pixels.shape[1] != 3 * 32 * 32:
        raise DataError(
            f"{path} must hold images of 3,072 bytes, got {pixels.shape[1]}: fetch it again"
        )
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise DataError(f"{path} must hold one label for each image: fetch it again")
    if not all(label in range(len(CLASSES)) for label in labels):
        raise DataError(f"{path} must hold labels from 0 to 9: fetch it again")
    return pixels, np.array(labels, dtype=np.int64)


def _download(root: Path) -> None:
    names = (*BATCHES["train"], *BATCHES["test"])
    try:
        with tarfile.open(fileobj=io.BytesIO(fetch(URL, MD5))) as archive:
            parts = {name: archive.extractfile(f"{FOLDER}/{name}") for name in names}
            contents: dict[str | Path, bytes] = {
                root / FOLDER / name: part.read() for name, part in parts.items() if part
            }
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise DataError(
            f"{URL} must give the archive of CIFAR-10: {error}; fetch it by hand"
        ) from None
    write_files(contents)
