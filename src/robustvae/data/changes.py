"""What is done to images when they are read: binarizing, noise, blur, JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from robustvae.errors import (
    RangeError,
    UnsupportedError,
    check_count,
    check_positive,
    check_type,
)
from robustvae.seeding import rand, randn, shard_generator

BEST_QUALITY = 95


@final
@dataclass(frozen=True)
class Binarized:
    """Pixels drawn as 1 with the probability that is their value, else 0.

    What is drawn for an image follows from the seed and its place in the set alone, so it does
    not depend on batches, order or a training run that was stopped.

    Args:
        dynamic: Draw anew in every epoch; False draws once and for all.
        seed: Of all draws.

    Raises:
        DtypeError: `dynamic` is not a truth value, or `seed` not a whole number.
        RangeError: `seed` is out of range.

    References:
        Salakhutdinov & Murray, 2008 (static); Burda et al., 2016 (dynamic).

    Examples:
        >>> import robustvae as rv
        >>> digits = rv.data.load("digits").changed(rv.data.Binarized(dynamic=True))
        >>> bool((digits[:9].x == digits.at(1)[:9].x).all())
        False
    """

    dynamic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_type(self.dynamic, "dynamic", bool)
        shard_generator(self.seed, 0, "")

    def __str__(self) -> str:
        return "dynamic" if self.dynamic else "static"

    def __call__(self, x: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Zeros and ones, (n, C, H, W)."""
        when = epoch if self.dynamic else 0
        return (_by_image(rand, x, rows, self.seed, f"binarized, epoch {when}") < x).to(x.dtype)


@final
@dataclass(frozen=True)
class Noisy:
    """Gaussian noise on every pixel, then clipped to [0, 1]; always the same for an image.

    Args:
        stddev: Of the noise, in pixel units.
        seed: Of all draws.

    Raises:
        DtypeError: `stddev` is not a number, or `seed` not a whole number.
        RangeError: `stddev` is not positive, or `seed` out of range.

    Examples:
        >>> import robustvae as rv
        >>> rv.data.load("digits").changed(rv.data.Noisy(0.1)).name
        'digits+noise:0.1'
    """

    stddev: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self.stddev, "stddev")
        shard_generator(self.seed, 0, "")

    def __str__(self) -> str:
        return f"noise:{self.stddev:g}"

    def __call__(self, x: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Noisy images, (n, C, H, W)."""
        noise = _by_image(randn, x, rows, self.seed, "noise")
        return (x + self.stddev * noise).clamp(0, 1)


WIDEST = 1000.0
"""Pixels of a blur's standard deviation: images have a few hundred, and memory grows with it."""


@final
@dataclass(frozen=True)
class Blurred:
    """Gaussian blur; beyond the edge the last pixel goes on.

    Args:
        sigma: Standard deviation, in pixels.

    Raises:
        DtypeError: `sigma` is not a number.
        RangeError: `sigma` is not positive, or beyond 1,000 pixels.

    Examples:
        >>> import robustvae as rv
        >>> rv.data.load("digits").changed(rv.data.Blurred(1.5)).name
        'digits+blur:1.5'
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.sigma, "sigma")
        if self.sigma > WIDEST:
            raise RangeError(f"sigma must be at most {WIDEST:g} pixels, got {self.sigma:g}")

    def __str__(self) -> str:
        return f"blur:{self.sigma:g}"

    def __call__(self, x: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Blurred images, (n, C, H, W)."""
        return blur(x, self.sigma).clamp(0, 1)


@final
@dataclass(frozen=True)
class Compressed:
    """JPEG and back, of images with one or three channels.

    Args:
        quality: From 1 to 95.

    Raises:
        DtypeError: `quality` is not a whole number.
        RangeError: `quality` is out of range.

    Examples:
        >>> import robustvae as rv
        >>> rv.data.load("digits").changed(rv.data.Compressed(50)).name
        'digits+jpeg:50'
    """

    quality: int = 25

    def __post_init__(self) -> None:
        check_quality(self.quality)

    def __str__(self) -> str:
        return f"jpeg:{self.quality}"

    def __call__(self, x: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Decompressed images, (n, C, H, W)."""
        return jpeg(x, self.quality)


def blur(x: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian blur of images (B, C, H, W), of standard deviation `sigma` pixels."""
    reach = max(1, round(3 * sigma))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-at.square() / (2 * sigma**2))
    window = (window / window.sum()).expand(x.shape[1], 1, -1)
    y = functional.pad(x, (reach,) * 4, mode="replicate")
    y = functional.conv2d(y, window.unsqueeze(2), groups=x.shape[1])
    return functional.conv2d(y, window.unsqueeze(3), groups=x.shape[1])


def jpeg(x: Tensor, quality: int = 25) -> Tensor:
    """Images in [0, 1], (B, C, H, W) with one or three channels, after JPEG at `quality`."""
    if x.shape[1] not in (1, 3):
        raise UnsupportedError(f"JPEG needs 1 or 3 channels, got {x.shape[1]}")
    results = []
    for image in (x.clamp(0, 1) * 255).round().to("cpu", torch.uint8).movedim(1, 3).numpy():
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if x.shape[1] == 1 else image).save(
            buffer, "JPEG", quality=quality
        )
        read = np.asarray(Image.open(buffer), dtype=np.float64) / 255
        results.append(torch.as_tensor(read).view(*x.shape[2:], x.shape[1]).movedim(2, 0))
    return torch.stack(results).to(x)


def check_quality(quality: int) -> None:
    """Raise unless JPEG knows this quality."""
    check_count(quality, "quality")
    if quality > BEST_QUALITY:
        raise RangeError(f"quality must be at most {BEST_QUALITY}, got {quality}")


def _by_image(
    draw: Callable[..., Tensor], x: Tensor, rows: Tensor, seed: int, purpose: str
) -> Tensor:
    """Random numbers like `x` that follow from each image's row, and not from its batch."""
    generators = (shard_generator(seed, row, purpose) for row in rows.tolist())
    return torch.stack([draw(*x.shape[1:], like=x, generator=g) for g in generators])
