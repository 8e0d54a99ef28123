"""Inputs of any kind as one set of images: tensors, arrays, data sets, loaders, folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from robustvae.arguments import checked
from robustvae.data.arrays import is_mapped, labels_of, pixels_of
from robustvae.data.dataset import Dataset, from_dataset
from robustvae.data.images import CHUNK, Images, Source
from robustvae.data.space import InputSpace, within_unit
from robustvae.errors import (
    DataError,
    DtypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    check_type,
)

BYTES = 2**31  # of float32 pixels collected from a loader; larger sets are read from files
MAPPED_FROM = 2**28  # bytes of whole numbers in memory that are not made four times as many
DEPTHS = {torch.uint8: 255.0, torch.bool: 1.0}


@checked(formula=True)
def from_tensor(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray | None = None,
    *,
    space: InputSpace | None = None,
    name: str = "tensor",
    split: str = "test",
) -> Images:
    """Images that are in memory already, with labels or without.

    Args:
        x: (N, C, H, W) or (N, H, W): in [0, 1], or bytes. With a `space`, inputs of its shape in
            [0, 1] or in its unit. Round-off beyond the range is clamped. An array is read as
            `as_images` reads it, which also takes data sets, loaders and folders.
        y: Labels, whole numbers, (N,); zeros where there are none.
        space: What the model reads, for inputs other than images in [0, 1].
        name: Name of the set.
        split: Of the set.

    Raises:
        DtypeError: Neither a tensor nor an array, or a type that has no range.
        ShapeError: No images, or labels of another number.
        NonFiniteError: A NaN or an infinity.
        RangeError: Values outside the range.

    Examples:
        >>> import robustvae as rv, torch
        >>> images = rv.data.from_tensor(torch.rand(5, 1, 8, 8))
        >>> images.shape, images.y.tolist()
        ((5, 1, 8, 8), [0, 0, 0, 0, 0])
    """
    if isinstance(x, np.ndarray):
        return _from_array(x, y, space, name, split)
    if isinstance(y, np.ndarray):
        y = labels_of(y, len(x), name)
    check_type(x, "x", Tensor)
    x = x.detach()
    values = _in_unit(x) if space is None else space.to_images(x)
    count = len(values)
    if y is None:
        y = torch.zeros(count, dtype=torch.int64)
    check_type(y, "y", Tensor)
    if y.is_floating_point() or y.is_complex():
        raise DtypeError(f"y must be whole numbers, got {y.dtype}: give labels.long()")
    return Images(values, y.detach().long(), name, split)


def _in_unit(x: Tensor) -> Tensor:
    if x.is_complex() or not (x.is_floating_point() or x.dtype in DEPTHS):
        raise DtypeError(
            f"x must be of floating type in [0, 1] or bytes, got {x.dtype}: scale it to [0, 1], "
            "or give space=InputSpace(shape, low, high)"
        )
    if x.ndim == 3:
        x = x.unsqueeze(1)
    if x.ndim != 4 or 0 in x.shape:
        raise ShapeError(
            f"x must be (N, C, H, W) or (N, H, W), got {tuple(x.shape)}: for other "
            "data give space=InputSpace(shape, low, high)"
        )
    if x.dtype in DEPTHS:
        return x.to(torch.float32) / DEPTHS[x.dtype]
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.to(torch.float32)
    if not bool(x.isfinite().all()):
        raise NonFiniteError("x must be finite, got a NaN or an infinity")
    if not within_unit(x):
        raise RangeError(
            f"x must lie in [0, 1], got values from {float(x.min())!r} to {float(x.max())!r}: "
            "scale it, or give space=InputSpace(shape, low, high) with the range that it has"
        )
    return x.clamp(0, 1).contiguous()


@final
@dataclass(frozen=True, eq=False)
class InSpace:
    """A mapped array of inputs in a model's own space, turned into images as they are read.

    Args:
        array: (N, ...), of the space's shape or of its images'.
        space: What the model reads.
        is_unit: Whether all values lie in [0, 1] and are taken as they are.
    """

    array: np.ndarray
    space: InputSpace
    is_unit: bool

    @classmethod
    def of(cls, array: np.ndarray, space: InputSpace) -> InSpace:
        """Looks through the array once: a few inputs in [0, 1] do not say that all are."""
        is_unit = not space.discrete
        for begin in range(0, len(array), CHUNK):
            values = _floats(array[begin : begin + CHUNK])
            space.to_images(values)  # raises where they fit neither range
            is_unit = is_unit and within_unit(values)
        return cls(array, space, is_unit)

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W)."""
        return len(self.array), *self.space.image_shape

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1], (n, C, H, W)."""
        values = _floats(self.array[rows.numpy()]).reshape(-1, *self.space.image_shape)
        images = values if self.is_unit else self.space.from_model(values)
        return images.clamp(0, 1).contiguous()


def _floats(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).to(torch.float32)


@checked(formula=True)
def as_images(
    inputs: Any,
    y: Tensor | None = None,
    *,
    space: InputSpace | None = None,
    split: str = "test",
    name: str | None = None,
) -> Images:
    """Anything that holds inputs, as one set of images in [0, 1].

    Args:
        inputs: `Images`; a tensor or an array; a torch Dataset of images or pairs (image, label);
            a DataLoader; a folder, or an npz, npy or safetensors file; the name of a data set; a
            list of images; or a pair of all images and all labels. Mapped arrays, such as of
            `numpy.load(path, mmap_mode="r")`, are read as they are asked for.
        y: Labels of a tensor or an array.
        space: What the model reads, for inputs other than images in [0, 1].
        split: Of a folder or a named set; a folder without a split of its own is taken whole.
        name: Name of the set; None for one that says what it was made of.

    Raises:
        DtypeError: Nothing that holds images; the message lists what does.
        RobustVAEError: Raised by the reader of that kind.

    Examples:
        >>> import numpy as np, robustvae as rv
        >>> rv.data.as_images(np.zeros((4, 8, 8), dtype=np.uint8)).shape
        (4, 1, 8, 8)
    """
    if isinstance(inputs, Images):
        return inputs
    if isinstance(inputs, Tensor):
        return from_tensor(inputs, y, space=space, split=split, name=name or "tensor")
    if isinstance(inputs, np.ndarray):
        return _from_array(inputs, y, space, name or "array", split)
    if isinstance(inputs, str | Path):
        return _from_text(inputs, split)
    if isinstance(inputs, DataLoader | IterableDataset):
        x, labels = _collected(inputs)
        return from_tensor(x, labels, space=space, split=split, name=name or "loader")
    if y is None and _is_with_labels(inputs):
        return as_images(inputs[0], inputs[1], space=space, split=split, name=name)
    if isinstance(inputs, dict | bytes | type) or not isinstance(inputs, Dataset):
        raise DtypeError(
            f"inputs must be a tensor, an array, a torch Dataset or DataLoader, a folder, the name "
            f"of a data set or rv.data.Images, got {type(inputs).__name__}: for a generator or a "
            "mapping give rv.data.from_tensor(torch.stack(images))"
        )
    return _from_items(inputs, space, name or type(inputs).__name__, split)


def _is_with_labels(inputs: Any) -> bool:
    """Whether this is a pair of all inputs and all labels."""
    if not isinstance(inputs, tuple | list) or len(inputs) != 2:
        return False
    x, y = inputs
    if not all(isinstance(part, Tensor | np.ndarray) for part in (x, y)):
        return False
    is_whole = str(y.dtype).removeprefix("torch.") in ("int8", "int16", "int32", "int64")
    return bool(x.ndim >= 3 and y.ndim == 1 and len(x) == len(y) and is_whole)


def _from_array(
    array: np.ndarray, y: Any, space: InputSpace | None, name: str, split: str
) -> Images:
    labels = None
    if y is not None:
        values = y.numpy() if isinstance(y, Tensor) else np.asarray(y)
        labels = labels_of(values, len(array), name)
    if space is not None and is_mapped(array):
        source: Source = InSpace.of(array, space)
        return Images(source, _zeros(len(array)) if labels is None else labels, name, split)
    if space is not None:
        x = torch.from_numpy(np.ascontiguousarray(array))
        return from_tensor(x, labels, space=space, name=name, split=split)
    if array.dtype.kind not in "fub":
        raise DtypeError(
            f"an array of images must be of floating type in [0, 1] or bytes, got {array.dtype}"
        )
    if is_mapped(array) or (array.dtype == np.uint8 and array.nbytes > MAPPED_FROM):
        source = pixels_of(array, name)
        return Images(source, _zeros(len(array)) if labels is None else labels, name, split)
    if array.dtype == np.uint8 or array.ndim == 3 or (array.ndim == 4 and array.shape[-1] <= 4):
        pixels = pixels_of(_simple(array), name)
        return from_tensor(pixels.read(torch.arange(len(array)), 0), labels, name=name, split=split)
    return from_tensor(
        torch.from_numpy(np.ascontiguousarray(_simple(array))), labels, name=name, split=split
    )


def _zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def _simple(array: np.ndarray) -> np.ndarray:
    """Half precision, which readers do not know, in single."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _from_text(text: str | Path, split: str) -> Images:
    from robustvae.data.folder import read_folder
    from robustvae.data.sets import load

    if isinstance(text, str) and not _is_there(text):
        return load(text, split=split)
    return read_folder(Path(text).expanduser(), split, whole=True)


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # longer than a name may be, a zero byte, ~nobody
        return False


def _from_items(items: Dataset, space: InputSpace | None, name: str, split: str) -> Images:
    if len(items) == 0:
        raise DataError("the data set is empty: give at least one image")
    first = items[0]
    if space is None and _is_pair(first):
        return from_dataset(items, name=name, split=split)
    x, labels = _collected(items[number] for number in range(len(items)))
    return from_tensor(x, labels, space=space, name=name, split=split)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple | list) and len(item) == 2 and not hasattr(item[1], "mode")


def _collected(batches: Iterable[Any]) -> tuple[Tensor, Tensor | None]:
    """All inputs and labels of items or batches, up to a budget."""
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    byte_count = 0
    for batch in batches:
        x, y = _split(batch)
        byte_count += x.numel() * 4
        if byte_count > BYTES:
            raise DataError(
                f"the inputs exceed {BYTES // 2**20} MB in memory: give fewer, such as "
                "torch.utils.data.Subset, or a folder, which is read as it is asked for"
            )
        parts.append(x)
        if y is not None:
            labels.append(y)
    if not parts:
        raise DataError("the loader is empty: give at least one batch")
    shapes = {tuple(part.shape[1:]) for part in parts}
    together = len({part.ndim for part in parts}) == 1 and len(shapes) == 1
    is_batched = parts[0].ndim >= 4 or (labels and labels[0].ndim == 1)
    if not together and not len({tuple(part.shape) for part in parts}) == 1:
        raise DataError(f"the inputs must be of one shape, got {sorted(shapes)[:3]}")
    x = torch.cat(parts) if is_batched else torch.stack(parts)
    if not labels:
        return x, None
    y = torch.cat([label.reshape(-1) for label in labels])
    if y.is_floating_point() or len(y) != len(x):
        return x, None  # targets other than classes: regression values, masks, captions
    return x, y.long()


def _split(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Inputs and labels of one item or batch; labels of another kind than numbers are left out."""
    y: Any = None
    if isinstance(batch, dict):
        keys = [key for key in ("image", "images", "pixel_values", "x", "data") if key in batch]
        if not keys:
            raise DataError(f"a batch must have images, got the keys {sorted(map(str, batch))[:6]}")
        y = next((batch[key] for key in ("label", "labels", "y", "target") if key in batch), None)
        batch = batch[keys[0]]
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch):
        y = batch[1] if len(batch) > 1 else None
        batch = batch[0]
    if not isinstance(batch, Tensor):
        array = np.asarray(batch)
        if array.dtype.kind not in "fub":
            raise DataError(f"an item must be an image, got {type(batch).__name__}")
        read = pixels_of(_simple(array)[None], "an item").read(torch.tensor([0]), 0)[0]
        batch = read
    if isinstance(y, int) or (isinstance(y, np.generic) and y.dtype.kind in "iu"):
        y = torch.tensor([int(y)])
    return batch.detach(), y if isinstance(y, Tensor) else None
