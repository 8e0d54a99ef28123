"""Noise on the input during training: read the noisy image, explain the clean one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustvae.errors import DtypeError, RangeError, check_number
from robustvae.seeding import rand, randn

InputNoise = float | tuple[float, float]
"""A standard deviation in pixel units, or the range from which every image draws its own."""


def checked_noise(value: float | Sequence[float]) -> InputNoise:
    """Return `value` as a number, or as a pair (low, high).

    Raises:
        DtypeError: Neither a number nor two of them.
        RangeError: A negative number, or a range whose ends are in the wrong order.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise DtypeError(
                f"input_noise must be a number or a pair (low, high), got {value!r}: "
                "name one standard deviation or two"
            )
        for end in value:
            check_number(end, "input_noise", least=0)
        low, high = value
        if low > high:
            raise RangeError(
                f"input_noise must be a pair (low, high) with low <= high, got {value!r}: "
                "swap the two"
            )
        return (low, high)
    check_number(value, "input_noise", least=0)
    return value


def scaled_noise(value: InputNoise, share: float) -> InputNoise:
    """Return the noise, or both ends of its range, times `share`."""
    return (value[0] * share, value[1] * share) if isinstance(value, tuple) else value * share


def add_noise(x: Tensor, value: InputNoise, *, generator: torch.Generator) -> Tensor:
    """Return `x + s n` with n standard normal, s one number or drawn for every image.

    No draw is spent where the noise is 0. Values outside the range of the pixels stay: this is
    the law of the inputs that a smoothed victim reads.

    Args:
        x: Images, (B, C, H, W).
        value: See `InputNoise`; in pixel units.
        generator: Spent by the draws.
    """
    if value in (0, (0, 0)):
        return x
    if isinstance(value, tuple):
        low, high = value
        shares = rand(len(x), like=x, generator=generator)
        stddev: float | Tensor = (low + (high - low) * shares).view(-1, *[1] * (x.ndim - 1))
    else:
        stddev = value
    return x + stddev * randn(*x.shape, like=x, generator=generator)
