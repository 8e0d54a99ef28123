"""Sets kept as four IDX files in torchvision's folders: MNIST and those made in its likeness."""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch

from robustvae.data.images import Images
from robustvae.errors import DataError
from robustvae.records import write_bytes

UNSIGNED_BYTES = 0x08
BYTES = 2**30  # of one IDX file; the largest published one has 188 MB
SIDE = 28
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@final
@dataclass(frozen=True)
class IdxSet:
    """Where a set of 28x28 gray images is kept, and what must be found there.

    Attributes:
        name: What `load` calls it.
        folder: Where its files lie below the root.
        url: Where they are published, gzipped.
        md5: Sum of each published file, by name.
        counts: Number of images of each class, by split.
    """

    name: str
    folder: str
    url: str
    md5: dict[str, str]
    counts: dict[str, tuple[int, ...]]

    def load(self, split: str, root: Path, download: bool) -> Images:
        """Read one split, and check it against the known counts.

        Raises:
            DataError: Missing, truncated, or not the set it claims to be.
        """
        pixels, labels = self.read(split, root, download)
        x = torch.tensor(pixels, dtype=torch.float32).div_(255).unsqueeze(1)
        return Images(x, torch.tensor(labels, dtype=torch.int64), name=self.name, split=split)

    def read(self, split: str, root: Path, download: bool) -> tuple[np.ndarray, np.ndarray]:
        """As `load`, but bytes: images (N, 28, 28) and labels (N,)."""
        if download:
            for file in FILES[split]:
                if self._find(file, root) is None:
                    self._download(file, root)
        pixels, labels = (
            read_idx(self._found(file, root), axes)
            for file, axes in zip(FILES[split], (3, 1), strict=True)
        )
        count = self.counts[split]
        if pixels.shape != (sum(count), SIDE, SIDE):
            raise DataError(
                f"{root / self.folder} is not the {split} split of {self.name}: "
                f"wanted {sum(count)} images of {SIDE}x{SIDE}, got an array of {pixels.shape}"
            )
        counts = tuple(np.bincount(labels, minlength=len(count)).tolist())
        if counts != count:
            raise DataError(
                f"{root / self.folder} is not the {split} split of {self.name}: "
                f"wanted class counts {count}, got {counts}"
            )
        return pixels, labels

    def _find(self, file: str, root: Path) -> Path | None:
        places = (root / self.folder / file, root / self.folder / f"{file}.gz")
        return next((place for place in places if place.is_file()), None)

    def _found(self, file: str, root: Path) -> Path:
        path = self._find(file, root)
        if path is None:
            raise DataError(
                f"{self.name} is missing: looked for {root / self.folder / file}, raw or .gz; "
                f"fetch the four IDX files from {self.url} into that folder, or name the folder "
                f"above {self.folder} with root= or ROBUSTVAE_DATA, or pass download=True"
            )
        return path

    def _download(self, file: str, root: Path) -> None:
        content = fetch(f"{self.url}{file}.gz", self.md5[file])
        write_bytes(root / self.folder / f"{file}.gz", content)


def fetch(source: str, md5: str) -> bytes:
    """The published file at a URL.

    Raises:
        DataError: It cannot be had, or is another file.
    """
    try:
        with urllib.request.urlopen(source, timeout=60) as answer:
            content: bytes = answer.read()
    except OSError as error:
        raise DataError(f"{source} cannot be downloaded: {error}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise DataError(f"{source} is not the published file: its MD5 sum differs")
    return content


def read_idx(path: Path, axes: int, wanted: tuple[int, ...] | None = None) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, gzipped or raw.

    The header is read first, and then no more than it announces.

    Args:
        path: The file; taken for gzipped if its name ends in ".gz".
        axes: Number of axes wanted: 3 for images (magic number 2051), 1 for labels (2049).
        wanted: The shape that is expected, where it is known.

    Returns:
        Array of uint8 with `axes` axes.

    Raises:
        DataError: Not readable, another magic number or shape, too large, or truncated.
    """
    header = 4 * (1 + axes)
    expected = (UNSIGNED_BYTES << 8) + axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(header)
            magic = int.from_bytes(start[:4], "big")
            if len(start) < header or magic != expected:
                raise DataError(
                    f"{path} is not the IDX file wanted: magic number {magic}, not {expected}"
                )
            shape = tuple(np.frombuffer(start, ">u4", count=axes, offset=4).tolist())
            if wanted is not None and shape != wanted:
                raise DataError(f"{path} must hold an array of {wanted}, it announces {shape}")
            byte_count = int(np.prod(shape, dtype=object))
            if byte_count > BYTES:
                raise DataError(
                    f"{path} announces {byte_count} bytes, more than {BYTES} are not read"
                )
            body = file.read(byte_count + 1)  # one more shows a file that is too long
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read, it may be truncated: {error}") from error
    if len(body) != byte_count:
        raise DataError(
            f"{path} is truncated or damaged: it announces {byte_count} bytes, holds {len(body)}"
            + (" or more" if len(body) > byte_count else "")
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
