"""A set of labelled images in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from robustvae.errors import (
    DtypeError,
    RangeError,
    ShapeError,
    check_count,
    check_images,
    check_probability,
    check_type,
)


@final
@dataclass(frozen=True)
class Images:
    """Labelled images, held in memory.

    Args:
        x: Images in [0, 1], (N, C, H, W).
        y: Labels, whole numbers, (N,).
        name: Name of the set.
        split: "train", "test", or a word of your own.

    Raises:
        ShapeError: `x` is not (N, C, H, W), or `y` not (N,).
        DtypeError: `x` is not of floating type, or `y` not int64.
        NonFiniteError: A NaN or an infinity in `x`.
        RangeError: A pixel outside [0, 1].

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> len(images), images.image_shape, images[:100].x.shape
        (355, (1, 8, 8), torch.Size([100, 1, 8, 8]))
    """

    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    name: str = "images"
    split: str = "train"

    def __post_init__(self) -> None:
        """Refuse what is no set of images."""
        check_images(self.x)
        if not isinstance(self.y, Tensor) or self.y.dtype != torch.int64:
            got = getattr(self.y, "dtype", type(self.y).__name__)
            raise DtypeError(f"y must be an int64 tensor of labels, got {got}")
        if self.y.shape != self.x.shape[:1]:
            raise ShapeError(f"y must be ({len(self.x)},), got {tuple(self.y.shape)}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.x)

    def __getitem__(self, index: int | slice | Tensor) -> Images:
        """The images at `index`, as a set again; a whole number gives a set of one."""
        if isinstance(index, int):
            index = torch.tensor([index])
        return replace(self, x=self.x[index], y=self.y[index])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.x.shape[1:]
        return channels, height, width

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
        chosen = self.choose(n, stratified, generator=generator)
        return self.x[chosen], self.y[chosen]

    def choose(self, n: int, stratified: bool = False, *, generator: torch.Generator) -> Tensor:
        """The indices that `sample` would take, (n,)."""
        check_count(n, "n")
        check_type(stratified, "stratified", bool)
        if n > len(self):
            raise RangeError(f"n must be at most {len(self)}, the number of images, got {n}")
        order = permutation(len(self), generator)
        if stratified:
            rank, _ = rank_in_class(self.y.cpu()[order])
            balanced = order[rank.argsort(stable=True)[:n]]
            order = balanced[permutation(n, generator)]
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
                f"a fraction of {fraction:g} of {len(self)} images leaves a part empty"
            )
        return self[order[~held_out].sort().values], self[order[held_out].sort().values]


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """The whole numbers below `n` in random order, (n,), on the CPU."""
    check_type(generator, "generator", torch.Generator)
    return torch.randperm(n, generator=generator, device=generator.device).cpu()


def rank_in_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each label, how many of its class stand before it, and how large its class is."""
    _, which, counts = labels.unique(return_inverse=True, return_counts=True)
    grouped = which.argsort(stable=True)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(which)
    rank[grouped] = torch.arange(len(which)) - first[which[grouped]]
    return rank, counts[which]
