"""Small sets on disk, in every layout that is read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustvae.data import cifar10

FEW = {"train": 5, "test": 4}


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_batches(root: Path, content: dict[str, Any] | None = None) -> Path:
    """CIFAR-10's layout with `FEW` images of each class; `content` goes into every batch."""
    folder = root / cifar10.FOLDER
    folder.mkdir(parents=True)
    for split, names in cifar10.BATCHES.items():
        labels = np.tile(np.arange(10), FEW[split]).reshape(len(names), -1)
        for number, (name, mine) in enumerate(zip(names, labels, strict=True)):
            data = pixels(len(mine), 3072, seed=number)
            batch = {b"data": data, b"labels": mine.tolist()} | (content or {})
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def write_faces(folder: Path, count: int = 12) -> Path:
    """CelebA's layout: one file in three is for testing, one of those in two for validation."""
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, count + 1)]
    for i, name in enumerate(names):
        image = Image.fromarray(pixels(1, 22, 18, 3, seed=i)[0])
        image.save(folder / "img_align_celeba" / name, quality=95)
    parts = [0, 0, 2, 0, 0, 1]
    lines = [f"{name} {parts[i % 6]}" for i, name in enumerate(names)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    lines = [f"{name}  {1 if i % 2 else -1} -1" for i, name in enumerate(names)]
    header = f"{count}\nSmiling Young \n"
    (folder / "list_attr_celeba.txt").write_text(header + "\n".join(lines) + "\n")
    return folder


def write_photos(folder: Path, count: int = 20) -> Path:
    """Two classes of color photographs of several sizes."""
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(pixels(1, 20 + i % 3, 24, 3, seed=i)[0])
            image.save(folder / kind / f"{i:02d}.png")
    return folder


@pytest.fixture
def few_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "EACH", {split: (count,) for split, count in FEW.items()})
