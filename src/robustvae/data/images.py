"""A set of labeled images in [0, 1], in memory or read when they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from robustvae.arguments import checked, checked_fields
from robustvae.errors import (
    DtypeError,
    PlaceError,
    RangeError,
    ShapeError,
    check_choice,
    check_count,
    check_images,
    check_probability,
    check_sizes,
    check_type,
)

CHUNK = 1000


@runtime_checkable
class Source(Protocol):
    """Where images are read from, a few at a time: a file, a folder, a formula."""

    @property
    def shape(self) -> Sequence[int]:
        """(N, C, H, W) of all images."""

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1] by number, (n, C, H, W) of float32; the same for the same arguments.

        Args:
            rows: Numbers of images from 0, int64, (n,), on the CPU.
            epoch: Of the training; only sources that draw anew each epoch look at it.
        """


class Change(Protocol):
    """What makes other images of the same shape, such as `Noisy` or `Binarized`."""

    def __call__(self, x: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Changed images in [0, 1], (n, C, H, W); the arguments are those of `Source.read`."""


@checked_fields
@final
class Images:
    """Labeled images, in memory or read from a `Source` a few at a time.

    `x` of a set that is read has all images made at once: take `images[rows].x`, `read(rows)` or
    `sample`, as training, attacks and audits do. The labels are always in memory.

    Args:
        x: Images in [0, 1], (N, C, H, W), or the source of them.
        y: Labels, whole numbers, (N,).
        name: Name of the set.
        split: "train", "test", or a word of your own.
        labels: All labels by name, each like `y`, where images have several; see `labeled_by`.

    Raises:
        ShapeError: `x` is not (N, C, H, W), or labels are not (N,).
        DtypeError: `x` is not of floating type, or labels are not int64.
        NonFiniteError: A NaN or an infinity in `x`.
        RangeError: A pixel outside [0, 1].

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> len(images), images.image_shape, images[:100].x.shape
        (355, (1, 8, 8), torch.Size([100, 1, 8, 8]))
    """

    def __init__(
        self,
        x: Tensor | Source,
        y: Tensor,
        name: str = "images",
        split: str = "train",
        labels: Mapping[str, Tensor] | None = None,
    ) -> None:
        if isinstance(x, Source):
            check_sizes(tuple(x.shape), "the shape of a source", axes=4)
        else:
            check_images(x)
            x = x.clamp(
                0, 1
            ).contiguous()  # round-off beyond the range, and arrays that were turned
        for label in (y, *(labels or {}).values()):
            if not isinstance(label, Tensor) or label.dtype != torch.int64:
                kind = getattr(label, "dtype", type(label).__name__)
                raise DtypeError(f"y must be an int64 tensor of labels, got {kind}")
            if tuple(label.shape) != (x.shape[0],):
                raise ShapeError(f"y must be ({x.shape[0]},), got {tuple(label.shape)}")
        self._source = x
        self.y = y
        self.name = name
        self.split = split
        self.labels = dict(labels or {"label": y})
        self._epoch = 0
        self.about = ""
        self.classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Images(name={self.name!r}, split={self.split!r})"

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y)

    @checked(formula=True)
    def __getitem__(self, index: int | slice | Tensor | list[int]) -> Images:
        """The images at `index`, as a set again; a whole number gives a set of one."""
        if isinstance(index, int) and not isinstance(index, bool):
            if not -len(self) <= index < len(self):
                raise PlaceError(
                    f"an image of {self.name} must have a number below {len(self)}, got {index:.9g}"
                )
            index = torch.tensor([index])
        elif isinstance(index, list):
            index = torch.tensor(index)
            _check_rows(index, len(self))
        elif isinstance(index, Tensor):
            _check_rows(index, len(self))
        elif not isinstance(index, slice):
            raise DtypeError(
                f"images are chosen by a number, a slice or a tensor, got {type(index).__name__}"
            )
        source: Tensor | Source
        if isinstance(self._source, Tensor):
            source = self._source[index]
        else:
            rows = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
            source = _chosen(self._source, rows)
        if source.shape[0] == 0:
            raise ShapeError(f"no image of {self.name} is chosen: a set has at least one")
        labels = {name: values[index] for name, values in self.labels.items()}
        return self._with(_source=source, y=self.y[index], labels=labels)

    @property
    def x(self) -> Tensor:
        """All images, (N, C, H, W)."""
        if isinstance(self._source, Tensor):
            return self._source
        everything = torch.empty(self.shape, dtype=self.read(torch.tensor([0])).dtype)
        for rows in torch.arange(len(self)).split(CHUNK):
            everything[rows] = self.read(rows)
        return everything

    @property
    def in_memory(self) -> bool:
        """Whether `x` is a tensor that is there, rather than read."""
        return isinstance(self._source, Tensor)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of all images."""
        count, channels, height, width = self._source.shape
        return count, channels, height, width

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.shape[1:]

    def read(self, rows: Tensor) -> Tensor:
        """Some images by their place in this set, (n, C, H, W).

        Args:
            rows: Numbers from 0, int64, (n,).

        Raises:
            DataError: The file of an image is missing or damaged.
            RangeError: The source gave a pixel outside [0, 1].

        Examples:
            >>> import robustvae as rv, torch
            >>> rv.data.load("dsprites").read(torch.tensor([5, 3, 5])).shape
            torch.Size([3, 1, 64, 64])
        """
        check_type(rows, "rows", Tensor)
        _check_rows(rows, len(self))
        if isinstance(self._source, Tensor):
            return self._source[rows]
        x = self._source.read(rows.cpu(), self._epoch)
        check_images(x, self.image_shape, name=f"an image of {self.name}")
        return x

    def at(self, epoch: int) -> Images:
        """This set in an epoch of training: another one only where images are drawn anew."""
        check_count(epoch, "epoch", least=0)
        return self._with(_epoch=epoch)

    def changed(self, change: Change) -> Images:
        """The same set with every image changed when it is read.

        Args:
            change: `Binarized`, `Blurred`, `Compressed`, `Noisy`, or a callable of your own.

        Examples:
            >>> import robustvae as rv
            >>> digits = rv.data.load("digits").changed(rv.data.Binarized())
            >>> digits.name, digits[:3].x.unique().tolist()
            ('digits+static', [0.0, 1.0])
        """
        if not callable(change):
            raise DtypeError(f"change must be callable, got {type(change).__name__}")
        word = getattr(change, "__name__", str(change))
        return self._with(_source=_Changed(self._source, change), name=f"{self.name}+{word}")

    def named(self, name: str) -> Images:
        """The same set under another name."""
        check_type(name, "name", str)
        return self._with(name=name)

    @checked(formula=True)
    def with_classes(self, names: Sequence[str]) -> Images:
        """The same set with a name for every label from 0, such as the folders it was read from.

        Raises:
            ShapeError: Fewer names than labels.
        """
        count = int(self.y.max()) + 1 if len(self.y) else 0
        if len(names) < count:
            raise ShapeError(
                f"names must be at least {count}, one for each label, got {len(names)}"
            )
        return self._with(classes=tuple(map(str, names)))

    @checked(formula=True)
    def class_name(self, label: int) -> str:
        """The name of a label; "label 3" where it has none."""
        return self.classes[label] if label < len(self.classes) else f"label {label}"

    def labeled_by(self, name: str) -> Images:
        """The same set with another of its labels as `y`.

        Args:
            name: One of `labels`, such as "color" of color_mnist.

        Raises:
            UnknownNameError: There is no such label.

        Examples:
            >>> import robustvae as rv
            >>> images = rv.data.load("dsprites", split="test").labeled_by("scale")
            >>> images.y.unique().tolist()
            [0, 1, 2, 3, 4, 5]
        """
        check_choice("label", name, self.labels)
        return self._with(y=self.labels[name], classes=())

    def sample(
        self, n: int, stratified: bool = False, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """`n` different images and their labels, in random order.

        Args:
            n: Number of images, at most `len(self)`.
            stratified: Balance the classes: the counts of any two classes differ by at most one,
                unless a class runs out of images.
            generator: Decides which images.

        Returns:
            Images in [0, 1], (n, C, H, W), and labels, (n,).

        Raises:
            RangeError: `n` is below 1 or more than there are.

        Examples:
            >>> import robustvae as rv
            >>> images = rv.data.load("digits", split="test")
            >>> x, y = images.sample(20, stratified=True, generator=rv.generator(0))
            >>> y.bincount().tolist()
            [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
        """
        rows = self.choose(n, stratified, generator=generator)
        return self.read(rows), self.y[rows]

    def choose(self, n: int, stratified: bool = False, *, generator: torch.Generator) -> Tensor:
        """The indices that `sample` would take, (n,)."""
        check_count(n, "n")
        check_type(stratified, "stratified", bool)
        if n > len(self):
            raise RangeError(f"n must be at most {len(self)}, the number of images, got {n}")
        order = permutation(len(self), generator)
        if stratified:
            rank, _ = rank_in_class(self.y.cpu()[order])
            rows = order[rank.argsort(stable=True)[:n]]
            order = rows[permutation(n, generator)]
        return order[:n]

    def divide(self, fraction: float, *, generator: torch.Generator) -> tuple[Images, Images]:
        """Cut the set in two at random, with the same mixture of classes in both parts.

        Args:
            fraction: Share of the images that goes to the second part, strictly between 0 and 1;
                of a class of n images, round(fraction * n) go there.
            generator: Decides which images.

        Returns:
            The part to work with and the part held out, each in the order of this set.

        Raises:
            RangeError: `fraction` is out of range, or leaves one part empty.

        Examples:
            >>> import robustvae as rv
            >>> images = rv.data.load("digits")
            >>> kept, held_out = images.divide(0.1, generator=rv.generator(0))
            >>> len(kept), len(held_out)
            (1299, 143)
        """
        check_probability(fraction, "fraction")
        order = permutation(len(self), generator)
        rank, size = rank_in_class(self.y.cpu()[order])
        held_out = rank < (fraction * size).round()
        if held_out.all() or not held_out.any():
            raise RangeError(
                f"both parts need an image, got a fraction of {fraction:g} of {len(self)} images"
            )
        return self[order[~held_out].sort().values], self[order[held_out].sort().values]

    def _with(self, **changes: Any) -> Images:
        other = copy.copy(self)
        vars(other).update(changes)
        return other


@final
@dataclass(frozen=True, eq=False)
class _Chosen:
    """Some images of a source, in an order of their own."""

    source: Source
    rows: Tensor

    @property
    def shape(self) -> Sequence[int]:
        return len(self.rows), *self.source.shape[1:]

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        return self.source.read(self.rows[rows], epoch)


@final
@dataclass(frozen=True, eq=False)
class _Changed:
    """The images of another source, changed."""

    source: Tensor | Source
    change: Change

    @property
    def shape(self) -> Sequence[int]:
        return self.source.shape

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        if isinstance(self.source, Tensor):
            return self.change(self.source[rows], rows, epoch)
        return self.change(self.source.read(rows, epoch), rows, epoch)


def _chosen(source: Source, rows: Tensor) -> _Chosen:
    if isinstance(source, _Chosen):
        return _Chosen(source.source, source.rows[rows])
    return _Chosen(source, rows)


def _check_rows(rows: Tensor, count: int) -> None:
    """Raise unless a tensor chooses among `count` images: numbers of them, or a mask."""
    if rows.dtype == torch.bool:
        if tuple(rows.shape) != (count,):
            raise ShapeError(
                f"a mask of {count} images must be ({count},), got {tuple(rows.shape)}"
            )
        return
    if rows.dtype not in (torch.int64, torch.int32) or rows.ndim != 1:
        raise DtypeError(
            f"rows must be whole numbers of shape (n,), got {rows.dtype} of {tuple(rows.shape)}"
        )
    if len(rows) and not (-count <= int(rows.min()) and int(rows.max()) < count):
        raise RangeError(
            f"rows must lie below {count}, the number of images, "
            f"got {int(rows.min())} to {int(rows.max())}"
        )


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """The whole numbers below `n` in random order, (n,), on the CPU."""
    check_type(generator, "generator", torch.Generator)
    return torch.randperm(n, generator=generator, device=generator.device).cpu()


def rank_in_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each label, how many of its class stand before it, and how large its class is."""
    _, which, counts = labels.unique(return_inverse=True, return_counts=True)
    by_class = which.argsort(stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(which)
    rank[by_class] = torch.arange(len(which)) - first[which[by_class]]
    return rank, counts[which]
