"""Data sets by name."""

from __future__ import annotations

import os
from pathlib import Path

from robustvae.data import digits
from robustvae.data.fashion_mnist import FASHION_MNIST
from robustvae.data.idx import IdxSet
from robustvae.data.images import Images
from robustvae.data.mnist import MNIST
from robustvae.errors import check_choice

ON_DISK: dict[str, IdxSet] = {published.name: published for published in (FASHION_MNIST, MNIST)}
SPLITS = ("train", "test")


def names() -> list[str]:
    """Names that `load` knows, sorted.

    Examples:
        >>> import robustvae as rv
        >>> "digits" in rv.data.names()
        True
    """
    return sorted(["digits", *ON_DISK])


def load(
    name: str, split: str = "train", root: str | Path | None = None, download: bool = False
) -> Images:
    """Read a data set into memory.

    "digits" comes with the installation. The others are read from the folder `root`, else from
    the one that the environment variable ROBUSTVAE_DATA names, else from ~/.cache/robustvae, in
    torchvision's layout (`MNIST/raw`, `FashionMNIST/raw`; IDX files, raw or .gz).

    Args:
        name: One of `names()`.
        split: "train" or "test".
        root: Folder that holds the sets, or None to look in the places above.
        download: Fetch missing files from where they are published, checked by their MD5 sums.

    Returns:
        Images in [0, 1], float32.

    Raises:
        UnknownNameError: Unknown name or split.
        DataError: Missing, truncated, or not what it claims to be.
        StorageError: A download could not be written.

    Examples:
        >>> import robustvae as rv
        >>> rv.data.load("digits").x.shape
        torch.Size([1442, 1, 8, 8])
    """
    check_choice("data set", name, names())
    check_choice("split", split, SPLITS)
    if name == "digits":
        return digits.load(split)
    return ON_DISK[name].load(split, data_root(root), download)


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds the data sets: `root`, else ROBUSTVAE_DATA, else the user's cache."""
    chosen = root or os.environ.get("ROBUSTVAE_DATA") or "~/.cache/robustvae"
    return Path(chosen).expanduser()
