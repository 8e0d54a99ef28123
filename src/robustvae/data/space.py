"""What an input is: its shape, the range and unit of its values, and how they map to [0, 1].

Inside the library an input is an image (C, H, W) with values in [0, 1]. An `InputSpace` says what
its owner's model reads instead: other ranges, normalized values, and any number of axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor

from robustvae.errors import (
    ConfigError,
    DtypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    check_number,
    check_sizes,
    check_type,
)

TOLERANCE = 1e-4
"""Share of the range by which values may stray from it and count as round-off: resizing and
normalizing in float32 strays by 1e-6, half precision by 5e-4 of a value near 1 at most."""

Bound = float | tuple[float, ...]


@final
@dataclass(frozen=True)
class InputSpace:
    """What a model reads, and its way to images (C, H, W) in [0, 1] and back.

    The map is affine, u = low + (high - low) x, by channel where `low` and `high` are tuples, so
    that a perturbation of size r in [0, 1] is one of r (high - low) in the owner's unit. Inputs
    with another number of axes than three become images of the same numbers: (F,) is (1, 1, F),
    (C, T) is (C, 1, T), (C, T, H, W) is (C, T H, W).

    Args:
        shape: Of one input, as the model reads it, any number of axes.
        low: Least value, or one for each channel.
        high: Greatest value, or one for each channel.
        unit: What the owner calls the unit of the values.
        channels: Size of the first axis where that axis is a channel; None for what `shape` says.
        discrete: Whether only whole numbers of the owner's unit occur, as with counts.
        image: (C, H, W) of the image that stands for an input, where `shape` does not say it, as
            with models that read flattened pictures.

    Raises:
        ShapeError: A shape without axes, or bounds for another number of channels.
        RangeError: `high` is not above `low`.

    Examples:
        >>> import torch
        >>> from robustvae.data import InputSpace
        >>> space = InputSpace((3, 4, 4), low=-1, high=1)
        >>> space.to_model(torch.full((1, 3, 4, 4), 0.75)).unique()
        tensor([0.5000])
        >>> InputSpace((2, 16000), low=-1, high=1).image_shape
        (2, 1, 16000)
    """

    shape: tuple[int, ...]
    low: Bound = 0.0
    high: Bound = 1.0
    unit: str = "of the pixel range"
    channels: int | None = None
    discrete: bool = False
    image: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        """Check the bounds against the shape."""
        check_sizes(self.shape, "shape")
        if not self.shape:
            raise ShapeError("shape must have at least one axis, got ()")
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.image is not None:
            check_sizes(self.image, "image", axes=3)
            if math.prod(self.image) != math.prod(self.shape):
                raise ShapeError(f"image must have as many numbers as shape, got {self.image}")
        if self.channels is None:
            object.__setattr__(self, "channels", self.image_shape[0])
        for name in ("low", "high"):
            object.__setattr__(self, name, self._bound(name, getattr(self, name)))
        lows, highs = self._each(self.low), self._each(self.high)
        if len(lows) != len(highs) and 1 not in (len(lows), len(highs)):
            raise ShapeError(f"low and high must be of one length, got {len(lows)}, {len(highs)}")
        pairs = zip(_stretched(lows, highs), _stretched(highs, lows), strict=True)
        if not all(low < high for low, high in pairs):
            raise RangeError(f"high must be above low, got low {self.low} and high {self.high}")
        check_type(self.unit, "unit", str)
        check_type(self.discrete, "discrete", bool)

    @classmethod
    def of(cls, pixels: Any, shape: Sequence[int]) -> InputSpace:
        """The space that the `pixels` of `wrap` and `--pixels` mean.

        Args:
            pixels: A space; (low, high); or {"mean": ..., "std": ...} of a normalization of
                values in [0, 1], each a number or one for each channel.
            shape: Of one input.

        Raises:
            ConfigError: None of the three.

        Examples:
            >>> from robustvae.data import InputSpace
            >>> space = InputSpace.of({"mean": 0.5, "std": 0.25}, (1, 8, 8))
            >>> space.low, space.high
            (-2.0, 2.0)
        """
        if isinstance(pixels, InputSpace):
            if math.prod(pixels.shape) != math.prod(shape):
                raise ShapeError(
                    f"pixels must be a space of inputs {tuple(shape)}, got {pixels.shape}"
                )
            return pixels
        if isinstance(pixels, dict) and set(pixels) == {"mean", "std"}:
            means, spreads = (_numbers(pixels[key], f"pixels[{key!r}]") for key in ("mean", "std"))
            if not all(spread > 0 for spread in spreads):
                raise RangeError(f"pixels['std'] must be positive, got {pixels['std']}")
            means, spreads = _stretched(means, spreads), _stretched(spreads, means)
            pairs = list(zip(means, spreads, strict=True))
            return cls(
                tuple(shape),
                _bound([(0 - mean) / spread for mean, spread in pairs]),
                _bound([(1 - mean) / spread for mean, spread in pairs]),
                "of the normalized values",
            )
        if isinstance(pixels, list | tuple) and len(pixels) == 2:
            low, high = (_numbers(bound, "each of pixels") for bound in pixels)
            return cls(tuple(shape), _bound(low), _bound(high))
        raise ConfigError(
            "pixels must be (low, high), {'mean': ..., 'std': ...} or an InputSpace, "
            f"got {pixels!r}; for models that read [-1, 1] say pixels=(-1, 1)"
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image that stands for an input inside the library."""
        if self.image is not None:
            return self.image
        first, *others = self.shape
        if not others:
            return 1, 1, first
        return first, math.prod(others[:-1]), others[-1]

    @property
    def is_unit(self) -> bool:
        """Whether the model reads images in [0, 1] as they are."""
        return self.low == 0.0 and self.high == 1.0 and self.shape == self.image_shape

    @property
    def scale(self) -> float | None:
        """Size in the owner's unit of a step of 1 in [0, 1]; None where channels differ."""
        lows, highs = self._each(self.low), self._each(self.high)
        pairs = zip(_stretched(lows, highs), _stretched(highs, lows), strict=True)
        spans = [high - low for low, high in pairs]
        # 1 / std - mean / std and its like differ by rounding where they are equal
        same = max(spans) - min(spans) <= 1e-9 * max(spans)
        return spans[0] if same else None

    def to_model(self, x: Tensor) -> Tensor:
        """Images in [0, 1], (B, C, H, W), as the model reads them, (B, *shape).

        The result is contiguous and no view of `x`: code that works in place does no harm.
        """
        affine = self._affine(x)
        if affine is None:
            u = x.clone(memory_format=torch.contiguous_format)
        else:
            u = affine[0] + affine[1] * x
        return u.reshape(len(x), *self.shape).contiguous()

    def from_model(self, u: Tensor) -> Tensor:
        """What the model reads or writes, (B, ...) of as many numbers, as images (B, C, H, W)."""
        x = u.reshape(len(u), *self.image_shape)
        affine = self._affine(x)
        return x if affine is None else (x - affine[0]) / affine[1]

    def spread_from_model(self, stddev: Tensor) -> Tensor:
        """Standard deviations in the owner's unit, (B, ...), as those of images, (B, C, H, W)."""
        stddev = stddev.reshape(len(stddev), *self.image_shape)
        affine = self._affine(stddev)
        return stddev if affine is None else stddev / affine[1]

    def to_images(self, values: Tensor, *, name: str = "x") -> Tensor:
        """Inputs as images in [0, 1], whether they come in [0, 1] or in the owner's unit.

        Values that lie in [0, 1] are taken as they are, others that lie in [low, high] are mapped;
        round-off beyond a range is clamped.

        Args:
            values: (B, *shape) or (B, *image_shape), of floating type or whole numbers.
            name: What to call them in a message.

        Raises:
            ShapeError: Another shape.
            NonFiniteError: A NaN or an infinity.
            RangeError: Values in neither range.

        Examples:
            >>> import torch
            >>> from robustvae.data import InputSpace
            >>> InputSpace((2,), low=-1, high=1).to_images(torch.tensor([[-1.0, 1.0]]))
            tensor([[[[0., 1.]]]])
        """
        check_type(values, name, Tensor)
        if tuple(values.shape[1:]) not in (self.shape, self.image_shape) or not len(values):
            raise ShapeError(
                f"{name} must be (B, {', '.join(map(str, self.shape))}), got {tuple(values.shape)}"
            )
        if not values.is_floating_point():
            values = values.to(torch.get_default_dtype())
        if not bool(values.isfinite().all()):
            raise NonFiniteError(f"{name} must be finite, got a NaN or an infinity")
        x = values.reshape(len(values), *self.image_shape)
        if not self.discrete and within_unit(x):
            return x.clamp(0, 1).contiguous()
        images = self.from_model(x)
        if not within_unit(images):
            raise RangeError(
                f"{name} must lie in [0, 1] or in the model's own range from {self.low} to "
                f"{self.high}, got values from {float(x.min()):g} to {float(x.max()):g}; "
                "say pixels=(low, high) for another range"
            )
        return images.clamp(0, 1).contiguous()

    def round(self, x: Tensor) -> Tensor:
        """The nearest images whose values occur: for a discrete space whole numbers of its unit."""
        if not self.discrete:
            return x
        return self.from_model(self.to_model(x).round()).clamp(0, 1)

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.low == 0.0 and self.high == 1.0:
            return None
        low, high = (
            torch.tensor(self._each(bound), dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
            for bound in (self.low, self.high)
        )
        return low, high - low

    def _bound(self, name: str, value: Any) -> Bound:
        numbers = _numbers(value, name)
        if len(numbers) not in (1, self.channels):
            raise ShapeError(
                f"{name} must be one number or {self.channels}, one for each channel, "
                f"got {len(numbers)}"
            )
        return _bound(numbers)

    @staticmethod
    def _each(bound: Bound) -> list[float]:
        return list(bound) if isinstance(bound, tuple) else [bound]


def within_unit(x: Tensor) -> bool:
    """Whether all values lie in [0, 1], but for round-off.

    Examples:
        >>> import torch
        >>> from robustvae.data.space import within_unit
        >>> within_unit(torch.tensor([0.0, 1 + 1.2e-7])), within_unit(torch.tensor([1.1]))
        (True, False)
    """
    return float(x.min()) >= -TOLERANCE and float(x.max()) <= 1 + TOLERANCE


def _numbers(value: Any, name: str) -> list[float]:
    if isinstance(value, Tensor):
        value = value.detach().flatten().tolist()
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise DtypeError(f"{name} must be a number or one for each channel, got none")
    for number in values:
        check_number(number, name)
    return [float(number) for number in values]


def _stretched(values: list[float], like: list[float]) -> list[float]:
    return values * len(like) if len(values) == 1 else values


def _bound(numbers: list[float]) -> Bound:
    same = all(number == numbers[0] for number in numbers)
    return cast(Bound, numbers[0] if same else tuple(numbers))
