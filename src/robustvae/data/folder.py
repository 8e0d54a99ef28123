"""Any folder of images or file of an array, and CelebA's layout; read as it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from robustvae.arguments import checked
from robustvae.data.arrays import CHANNELS, labels_of, pixels_of, read_arrays
from robustvae.data.arrays import SUFFIXES as ARRAYS
from robustvae.data.images import Images, Source, rank_in_class
from robustvae.data.listing import FileList, folders_in, image_names
from robustvae.data.pixels import PIXELS, SUFFIXES, read_pixels
from robustvae.errors import DataError, DtypeError, RangeError, check_choice, check_count

SPLITS = ("train", "test")
TEST_EVERY = 10
PARTITION, ATTRIBUTES, FACES = "list_eval_partition", "list_attr_celeba", "img_align_celeba"
PARTS = {"train": "0", "test": "2"}


@final
@dataclass(frozen=True)
class Fit:
    """How images are brought to one shape; see `read_folder`."""

    crop: int | None = None
    size: int | None = None
    channels: int | None = None

    def __str__(self) -> str:
        return "".join(f"+{name}:{value}" for name, value in vars(self).items() if value)


@final
@dataclass(frozen=True)
class Files:
    """Image files, decoded as they are read.

    Args:
        paths: The files.
        channels: 1 or 3; files of the other kind are converted.
        crop: Side of the square cut out of the middle, in pixels; None for all of the image.
        size: Side that the square is scaled to; None leaves images as they are.
        shape: (N, C, H, W); every file must come to this.
        guessed: Whether the channels are those of the first file.
    """

    paths: FileList
    channels: int
    crop: int | None
    size: int | None
    shape: Sequence[int]
    guessed: bool = False

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1], (n, C, H, W)."""
        images = []
        for row in rows.tolist():
            path = self.paths[row]
            pixels = read_pixels(path, self.channels, guessed=self.guessed)
            x = fitted(pixels, self.crop, self.size, path)
            if tuple(x.shape[1:]) != tuple(self.shape[1:]):
                raise DataError(
                    f"{path} is of {tuple(x.shape[1:])} where the first image is of "
                    f"{tuple(self.shape[1:])}: bring all to one size with crop and size"
                )
            images.append(x)
        return torch.cat(images)


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """The images of another source, cut and scaled as they are read."""

    source: Source
    crop: int | None
    size: int | None
    where: Path

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""
        first = self.read(torch.tensor([0]), 0)
        return self.source.shape[0], *first.shape[1:]

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1], (n, C, H, W)."""
        return fitted(self.source.read(rows, epoch), self.crop, self.size, self.where)


@checked(formula=True)
def read_folder(
    folder: str | Path,
    split: str = "train",
    *,
    crop: int | None = None,
    size: int | None = None,
    channels: int | None = None,
    whole: bool = False,
) -> Images:
    """Images of your own, read as they are asked for.

    A folder is looked through in this order. It may hold

    - list_eval_partition.txt or .csv and the folder img_align_celeba, as CelebA does; the labels
      are the attributes in list_attr_celeba, "Smiling" first, where that file is there;
    - train.npz and test.npz, or their like;
    - the folders train and test, each of them like the next;
    - images, all of label 0; or folders of images, one for each class, in the order of their names.

    Images are read by their depth (1, 8, 16, 32 bits or floating type), turned as their camera was,
    and laid on white where they are transparent. Only regular files count, and none whose name
    begins with a dot.

    An npz or safetensors file has an array `images` and, where there are labels, an array `labels`;
    an npy file is the array of images. They are read as they are asked for, save what an npz file
    has compressed; train and test may be of any of the three kinds. Where nothing says what is for
    testing, it is every tenth image of each class, in the order of the names; a
    set with fewer than ten images of every class is not split: all of it is given for both. What
    was decided stands in `about` of the result.

    Args:
        folder: The folder, or an npz, npy or safetensors file.
        split: "train" or "test".
        crop: Side of the square cut out of the middle, in pixels.
        size: Scale to squares of this side, by antialiased bilinear interpolation; without `crop`
            the largest square in the middle is cut out first.
        channels: 1 or 3; None takes that of the first image.
        whole: Give all images of a folder that says nothing of testing, whatever the split.

    Returns:
        Images in [0, 1], float32, under a name by which `load` finds them again.

    Raises:
        DataError: Missing, damaged, or of several sizes; an image of which no such square can be
            cut.
        UnknownNameError: Another split.
        RangeError: `crop` or `size` is below 1, or `channels` neither 1 nor 3.

    References:
        Liu et al., 2015 (CelebA).

    Examples:
        >>> import tempfile, robustvae as rv
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for i in range(10):
        ...         Image.new("RGB", (50, 40), (25 * i, 0, 0)).save(f"{folder}/{i}.png")
        ...     rv.data.read_folder(folder, size=32).shape
        (9, 3, 32, 32)
    """
    check_choice("split", split, SPLITS)
    for what, value in (("crop", crop), ("size", size)):
        if value is not None:
            check_count(value, what)
            if value * value > PIXELS:
                raise RangeError(f"{what} must be at most {math.isqrt(PIXELS)} pixels, got {value}")
    if channels is not None:
        check_count(channels, "channels")
    if channels not in (None, *CHANNELS):
        raise RangeError(f"channels must be 1 or 3, got {channels!r}")
    if not isinstance(folder, str | Path):
        raise DtypeError(f"folder must be a path, got {type(folder).__name__}")
    fit = Fit(crop, size, channels)
    name = f"folder:{folder}{fit}"
    top = Path(folder)
    if top.is_file() and top.suffix in ARRAYS:
        images = _from_arrays(top, fit, name, split)
        return described(images, f"all of its {len(images)} images") if whole else _one_part(images)
    if not top.is_dir():
        raise DataError(f"{top} must be a folder of images, or a file of {', '.join(ARRAYS)}")
    partition = _table(top, PARTITION)
    if partition is not None:
        return _faces(top, partition, fit, name, split)
    for kind in ARRAYS:
        if any((top / f"{part}{kind}").is_file() for part in SPLITS):
            return _from_arrays(top / f"{split}{kind}", fit, name, split)
    if any((top / part).is_dir() for part in SPLITS):
        return _from_files(top / split, fit, name, split)
    images = _from_files(top, fit, name, split)
    if whole:
        return described(images, f"all of its {len(images)} images")
    return _one_part(images)


def fitted(x: Tensor, crop: int | None, size: int | None, where: Path) -> Tensor:
    """The square in the middle of images (n, C, H, W), scaled; see `read_folder`."""
    height, width = x.shape[2:]
    side = min(height, width) if crop is None and size is not None else crop
    if side is not None:
        if side > min(height, width):
            raise DataError(
                f"{where}: no square of {side} pixels can be cut out of {height} x {width}"
            )
        top, left = (height - side) // 2, (width - side) // 2
        x = x[..., top : top + side, left : left + side]
    if size is None or size == side:
        return x
    scaled = functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return scaled.clamp(0, 1)


def _from_files(top: Path, fit: Fit, name: str, split: str) -> Images:
    """Images in a folder, or in its folders, one a class."""
    names = image_names(top)
    paths, y = FileList([(top, names)]), torch.zeros(len(names), dtype=torch.int64)
    classes: list[str] = []
    if not names:
        paths = FileList((part, image_names(part)) for part in folders_in(top))
        groups = paths.groups()
        classes = [part.name for part, _ in groups]
        counts = torch.tensor([count for _, count in groups], dtype=torch.int64)
        y = torch.arange(len(groups)).repeat_interleave(counts)
    if not len(paths):
        raise DataError(
            f"no images: {top} or the folders in it must hold files ending in "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    images = Images(_files(paths, fit), y, name, split)
    return images.with_classes(classes) if classes else images  # files of no class have no names


def _from_arrays(path: Path, fit: Fit, name: str, split: str) -> Images:
    arrays = read_arrays(path)
    if "images" not in arrays:
        raise DataError(
            f"{path} must hold an array named images, got {', '.join(arrays) or 'none'}"
        )
    source: Source = pixels_of(arrays["images"], path)
    count, channels = source.shape[:2]
    if fit.channels not in (None, channels):
        raise DataError(f"{path} must hold images of {fit.channels} channels, got {channels}")
    if fit.crop is not None or fit.size is not None:
        source = Fitted(source, fit.crop, fit.size, path)
    if "labels" not in arrays:
        return Images(source, torch.zeros(count, dtype=torch.int64), name, split)
    return Images(source, labels_of(arrays["labels"], count, path), name, split)


def _faces(top: Path, partition: Path, fit: Fit, name: str, split: str) -> Images:
    """CelebA's layout: which file is of which split stands in a table of its own."""
    folder = top / FACES
    if (folder / FACES).is_dir():  # as some archives unpack
        folder = folder / FACES
    there = set(image_names(folder))
    names = [row[0] for row in _rows(partition) if row[1:] == [PARTS[split]]]
    missing = [file for file in names if file not in there]
    if missing or not names:
        raise DataError(
            f"{folder} has {len(names) - len(missing)} of the {len(names)} images of the {split} "
            f"split that {partition} names" + (f"; {missing[0]} is missing" if missing else "")
        )
    source = _files(FileList([(folder, names)]), fit)
    table = _table(top, ATTRIBUTES)
    if table is None:
        return Images(source, torch.zeros(len(names), dtype=torch.int64), name, split)
    labels = _attributes(table, names)
    y = labels.get("Smiling", next(iter(labels.values())))
    return Images(source, y, name, split, labels)


def _attributes(table: Path, files: list[str]) -> dict[str, Tensor]:
    """0 or 1 of each attribute, for each file."""
    rows = _rows(table)
    header = next((row for row in rows if len(row) > 1), [])
    values = {row[0]: row[1:] for row in rows if row[0][-4:].lower() in SUFFIXES}
    names = header[1:] if header[0:1] == ["image_id"] else header
    lines = [values.get(file, []) for file in files]
    if not names or any(len(row) != len(names) for row in lines):
        raise DataError(f"{table} must hold one value for each attribute of each image")
    try:
        ones = torch.from_numpy(np.array(lines).astype(np.int64) > 0).long()
    except ValueError:
        raise DataError(f"{table} must hold numbers as attributes") from None
    return dict(zip(names, ones.unbind(1), strict=True))


def _table(top: Path, name: str) -> Path | None:
    places = (top / f"{name}.txt", top / f"{name}.csv")
    return next((place for place in places if place.is_file()), None)


def _rows(table: Path) -> list[list[str]]:
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{table} cannot be read: {error}") from None
    rows = [line.replace(",", " ").split() for line in lines]
    return [row for row in rows if row]


def _one_part(images: Images) -> Images:
    """The part of a set without a split of its own: of each class every tenth is for testing."""
    rank, _ = rank_in_class(images.y)
    for_testing = rank % TEST_EVERY == TEST_EVERY - 1
    mask = for_testing if images.split == "test" else ~for_testing
    if not for_testing.any():
        return described(images, f"all of its {len(images)} images, too few to be split")
    return described(
        images[mask], f"{int(mask.sum())} of its {len(images)} images, the {images.split} part"
    )


def described(images: Images, words: str) -> Images:
    """The same set with what was decided on it, in words."""
    channels, height, width = images.image_shape
    classes = len(images.y.unique())
    duplicate = images[:]
    duplicate.about = (
        f"{images.name}: {words}; {channels} channels of {height} x {width}, "
        f"{classes} class{'es' if classes != 1 else ''}"
    )
    return duplicate


def _files(paths: FileList, fit: Fit) -> Files:
    first = read_pixels(paths[0], fit.channels)
    shape = fitted(first, fit.crop, fit.size, paths[0]).shape[1:]
    guess = fit.channels is None
    return Files(paths, shape[0], fit.crop, fit.size, (len(paths), *shape), guess)
