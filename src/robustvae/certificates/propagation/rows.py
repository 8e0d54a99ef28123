"""Backward rows: what some features of a node make of the nodes before it, for many inputs."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from robustvae.certificates.propagation.numbers import UP
from robustvae.norms import gamma, spectral_norm_bounds


@final
@dataclass(frozen=True, eq=False)
class Cause:
    """One activation's share in the remainder of a network: matrix @ e, with e bounded.

    Attributes:
        matrix: (k, U), over the U features whose lines are not exact.
        most: Bounds on |e_i|, (U,).
        total: Bound on the l2 norm of e.
    """

    matrix: Tensor
    most: Tensor
    total: float

    def length(self, scale: Tensor) -> float:
        """A bound on the l2 norm of scale * (matrix @ e), for positive `scale`, (k,)."""
        scaled = self.matrix * scale[:, None]
        each = float((scaled.abs() @ self.most).norm())
        # neither of the two is always the smaller
        return min(each, operator_bound(scaled) * self.total) * UP


@final
@dataclass(frozen=True)
class Window:
    """Rows that are zero outside a window of each: what few features see of an image.

    `data` is (R, C, h, w), its corner at (`top`, `left`) of images of `size`; zero outside them.
    """

    data: Tensor
    top: Tensor
    left: Tensor
    size: tuple[int, int]

    def places(self) -> tuple[Tensor, Tensor]:
        """The pixel of each entry, (R, h w), clamped to the image, and whether it is within."""
        rows = self.top[:, None] + torch.arange(self.data.shape[2])
        columns = self.left[:, None] + torch.arange(self.data.shape[3])
        height, width = self.size
        in_rows = (rows >= 0) & (rows < height)
        in_columns = (columns >= 0) & (columns < width)
        # an index must exist, also where the mask says that nothing is there
        place = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
        return place.flatten(1), (in_rows[:, :, None] & in_columns[:, None]).flatten(1)

    def through(
        self,
        grow: Callable[[Tensor], Tensor],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        shape: Sequence[int],
    ) -> Window | Tensor:
        """The rows before a convolution that reads `shape`."""
        size = (shape[-2], shape[-1])
        top, left = self.top * stride[0] - padding[0], self.left * stride[1] - padding[1]
        wide = Window(grow(self.data), top, left, size)
        _, within = wide.places()
        inner = wide.data * within.view(len(top), 1, *wide.data.shape[2:])
        wide = replace(wide, data=inner)
        # a window as large as the image only costs more than the rows in full
        small = inner.shape[2] < size[0] and inner.shape[3] < size[1]
        return wide if small else dense(wide)

    def times(self, factor: Tensor, owner: Tensor) -> Window:
        """Each row times what its input has, (B, C, H, W)."""
        place, _ = self.places()
        flat = factor.flatten(2)
        channels = torch.arange(flat.shape[1])
        weights = flat[owner[:, None, None], channels[None, :, None], place[:, None, :]]
        return replace(self, data=self.data * weights.reshape(self.data.shape))


def dense(rows: Window | Tensor) -> Tensor:
    """Rows in full, (R, *shape)."""
    if isinstance(rows, Tensor):
        return rows
    place, _ = rows.places()
    count, channels = rows.data.shape[:2]
    flat = torch.zeros(count, channels, math.prod(rows.size), dtype=torch.float64)
    flat.scatter_add_(2, place[:, None].expand(-1, channels, -1), rows.data.flatten(2))
    return flat.unflatten(2, rows.size)


def one_hot(features: Tensor, shape: Sequence[int]) -> Window | Tensor:
    """The rows of features of a node themselves."""
    # of an image a feature sees one pixel: rows in full would be mostly zeros
    if len(shape) == 3 and len(features):
        channels, height, width = shape
        data = torch.zeros(len(features), channels, 1, 1, dtype=torch.float64)
        data[torch.arange(len(features)), features // (height * width)] = 1
        place = features % (height * width)
        return Window(data, place // width, place % width, (height, width))
    start = torch.zeros(len(features), math.prod(shape), dtype=torch.float64)
    start[torch.arange(len(features)), features] = 1
    return start.view(-1, *shape)


@dataclass(frozen=True)
class Line(abc.ABC):
    """The lines of a nonlinear step over B balls: linear part plus middle +- half.

    What they leave out is also at most `total` in l2. `middle` and `half` are (B, U), flat.
    """

    middle: Tensor
    half: Tensor
    total: Tensor

    @abc.abstractmethod
    def pull(self, rows: Window | Tensor, owner: Tensor) -> Window | Tensor:
        """Rows (R, *shape) of the inputs `owner`, (R,), taken back through the linear part."""

    def loose(self, b: int) -> Tensor:
        """The features of an input whose lines are not exact."""
        return ((self.half[b] > 0) | (self.middle[b] != 0)).nonzero()[:, 0]

    def most(self, b: int) -> Tensor:
        """The most that is left out of each feature, (U,)."""
        return self.middle[b].abs() + self.half[b]


@final
@dataclass(frozen=True)
class CurveLine(Line):
    """Of an elementwise activation: slope (h - v); what is left out is at most ratio |h - v|.

    `slope` is (B, *shape), `ratio` (B, U); `doubt` has the rounding that `ratio` does not know.
    """

    slope: Tensor
    ratio: Tensor
    doubt: Tensor

    def pull(self, rows: Window | Tensor, owner: Tensor) -> Window | Tensor:
        """Times the slopes."""
        if isinstance(rows, Window):
            return rows.times(self.slope, owner)
        if len(self.slope) == 1:
            return rows * self.slope
        return rows * self.slope[owner]


@final
@dataclass(frozen=True)
class NormalLine(Line):
    """Of a normalization u / sqrt(|u|^2 / n + eps) in groups of n: its tangent.

    The Jacobian is scale (I - y y' / n), with y the normalized value; `groups` brings features
    (R, *shape) to (R, G, n) and `back` undoes it.
    """

    scale: Tensor
    y: Tensor
    groups: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]

    def pull(self, rows: Window | Tensor, owner: Tensor) -> Window | Tensor:
        """By the Jacobian, which is symmetric."""
        by_group = self.groups(dense(rows))
        y = self.y[owner]
        along = (by_group * y).sum(2, keepdim=True) / y.shape[2]
        return self.back((by_group - along * y) * self.scale[owner])


@final
@dataclass(frozen=True)
class Rows:
    """Rows of some features for one input: f = v + slope (p - x) + remainder in [low, high]."""

    features: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor
    causes: tuple[Cause, ...] | None

    def only(self, chosen: Tensor) -> Rows:
        """Some of the rows, by a mask."""
        causes = self.causes
        if causes is not None:
            causes = tuple(replace(cause, matrix=cause.matrix[chosen]) for cause in causes)
        return Rows(
            self.features[chosen], self.slope[chosen], self.low[chosen], self.high[chosen], causes
        )

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """Rows of one input that were computed apart."""
        causes = None
        if parts[0].causes is not None:
            causes = tuple(
                replace(group[0], matrix=torch.cat([cause.matrix for cause in group]))
                for group in zip(*(part.causes or () for part in parts), strict=True)
            )
        features, slope, low, high = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("features", "slope", "low", "high")
        )
        return Rows(features, slope, low, high, causes)


def operator_bound(matrix: Tensor) -> float:
    """A bound on the spectral norm of a matrix, (n, k), loose by 8th roots where it is large.

    ||G G||_F^(1/4) with G = M M^T, or the verified norm where that costs little.
    """
    if matrix.numel() == 0:
        return 0.0
    if not bool(matrix.isfinite().all()):
        return math.inf
    # up to 300 rows the eigensolver takes milliseconds; beyond, it grows with the cube
    if min(matrix.shape) <= 300:
        return float(spectral_norm_bounds(matrix[None])[0])
    # brought to entries of at most 1, so that the fourth power neither overflows nor vanishes
    exponent = torch.frexp(matrix.abs().amax())[1]
    matrix = torch.ldexp(matrix, -exponent)
    narrow = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    gram = narrow @ narrow.mT
    gram = (gram + gram.mT) / 2
    rounding = gamma(sum(matrix.shape) + 8) * float(narrow.square().sum())
    fourth = float((gram @ gram).norm()) + gamma(2 * len(gram) + 8) * float(gram.norm()) ** 2
    return math.ldexp(float((fourth**0.5 + rounding) ** 0.5 * UP), int(exponent))
