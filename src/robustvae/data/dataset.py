"""A dataset of pairs (image, label), such as torchvision's, as a set of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.data.arrays import labels_of, pixels_of
from robustvae.data.images import Images
from robustvae.errors import DataError, DtypeError


@runtime_checkable
class Dataset(Protocol):
    """Pairs (image, label) by number."""

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> Any:
        """One pair."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Items:
    """The images of a dataset, taken from it as they are read.

    Args:
        dataset: The pairs.
        shape: (N, C, H, W); every image must come to this.
    """

    dataset: Dataset
    shape: Sequence[int]

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1], (n, C, H, W)."""
        images = []
        for row in rows.tolist():
            x = _image(self.dataset, row)
            if tuple(x.shape[1:]) != tuple(self.shape[1:]):
                raise DataError(
                    f"item {row} of the dataset must be {tuple(self.shape[1:])} like the first, "
                    f"got {tuple(x.shape[1:])}"
                )
            images.append(x)
        return torch.cat(images)


@checked(formula=True)
def from_dataset(dataset: Dataset, name: str = "dataset", split: str = "train") -> Images:
    """The images of any dataset of pairs (image, label), such as those of torchvision.

    Images may be tensors (C, H, W), arrays (H, W) or (H, W, C), or of Pillow; bytes, or numbers in
    [0, 1]. They are taken from the dataset as they are read, so it must give the same image for
    the same number. The labels are its `targets`, or read in one pass where it has none.

    Args:
        dataset: Anything with a length and pairs by number.
        name: Name of the set.
        split: Of the set.

    Returns:
        Images in [0, 1], float32.

    Raises:
        DtypeError: `dataset` has no length or no items.
        DataError: It is empty, or an item is not a pair of an image and a whole number.

    Examples:
        >>> import robustvae as rv, torch
        >>> pairs = [(torch.rand(3, 4, 4), i % 2) for i in range(6)]
        >>> images = rv.data.from_dataset(pairs, name="mine")
        >>> images.shape, images.y.tolist()
        ((6, 3, 4, 4), [0, 1, 0, 1, 0, 1])
    """
    if not isinstance(dataset, Dataset) or isinstance(dataset, _NO_DATASETS):
        raise DtypeError(f"dataset must have a length and pairs, got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise DataError("the dataset must hold at least one item, got none")
    first = _image(dataset, 0)
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = [_pair(dataset, number)[1] for number in range(len(dataset))]
    try:
        values = np.asarray(targets)
    except (ValueError, TypeError):
        raise DataError("the labels of the dataset must be whole numbers: convert them") from None
    y = labels_of(values, len(dataset), "the dataset")
    return Images(Items(dataset, (len(dataset), *first.shape[1:])), y, name, split)


def _pair(dataset: Dataset, number: int) -> tuple[Any, Any]:
    pair = dataset[number]
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(
            f"item {number} of the dataset must be a pair (image, label), got {type(pair).__name__}"
        )
    return pair[0], pair[1]


def _image(dataset: Dataset, number: int) -> Tensor:
    """One image in [0, 1], (1, C, H, W)."""
    image, _ = _pair(dataset, number)
    where = f"item {number} of the dataset"
    if isinstance(image, Tensor):
        array = image.detach().cpu().numpy()
        if array.ndim == 3:  # tensors have their channels first, however many rows there are
            return torch.cat([pixels_of(plane[None], where).read(_ONE, 0) for plane in array], 1)
    else:
        array = np.asarray(image)
    return pixels_of(array[None], where).read(_ONE, 0)


_ONE = torch.tensor([0])
_NO_DATASETS = (str, bytes, dict, type, Tensor)
