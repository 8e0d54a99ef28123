"""dSprites: white sprites of five factors, drawn as they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.data.images import Images

SIDE = 64
FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
COUNT = math.prod(FACTORS.values())
TEST_SHARE = 0.1
GOLDEN = (math.sqrt(5) - 1) / 2
# At scale 1, in pixels; at any angle a sprite stays inside the picture.
HALF_SIDE, HALF_AXES, HEART = 10.4, (12.6, 7.6), 10.4
FIRST_CENTER = 16.5


def square(u: Tensor, v: Tensor) -> Tensor:
    """Whether points, in pixels from the middle, lie in a square."""
    return (u.abs() <= HALF_SIDE) & (v.abs() <= HALF_SIDE)


def ellipse(u: Tensor, v: Tensor) -> Tensor:
    """Whether points, in pixels from the middle, lie in a lying ellipse."""
    return (u / HALF_AXES[0]).square() + (v / HALF_AXES[1]).square() <= 1


def heart(u: Tensor, v: Tensor) -> Tensor:
    """Whether points, in pixels from the middle, lie in (x^2 + y^2 - 1)^3 <= x^2 y^3, y upwards."""
    x2, y = (u / HEART).square(), -v / HEART
    residual = x2 + y.square() - 1
    return residual * residual.square() <= x2 * y * y.square()


SHAPES = {"square": square, "ellipse": ellipse, "heart": heart}


@final
@dataclass(frozen=True)
class Sprites:
    """All 737,280 sprites; the last factor, y, runs fastest."""

    @property
    def shape(self) -> Sequence[int]:
        """(737280, 1, 64, 64)."""
        return COUNT, 1, SIDE, SIDE

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images of 0 and 1, (n, 1, 64, 64)."""
        factors = {name: values.view(-1, 1, 1) for name, values in factors_of(rows).items()}
        scale = 0.5 + 0.1 * factors["scale"].double()
        angle = 2 * math.pi / 39 * factors["orientation"].double()
        at = torch.arange(SIDE, dtype=torch.float64) + 0.5
        horizontal = at.view(1, 1, -1) - (FIRST_CENTER + factors["x"])
        down = at.view(1, -1, 1) - (FIRST_CENTER + factors["y"])
        u = (angle.cos() * horizontal + angle.sin() * down) / scale
        v = (angle.cos() * down - angle.sin() * horizontal) / scale
        heights = torch.empty_like(u)
        for kind, inside in enumerate(SHAPES.values()):
            mask = factors["shape"].flatten() == kind
            heights[mask] = inside(u[mask], v[mask]).to(u.dtype)
        return heights.unsqueeze(1).to(torch.float32)


def factors_of(rows: Tensor) -> dict[str, Tensor]:
    """The place of each factor on its grid, for images by number, each (n,)."""
    factors: dict[str, Tensor] = {}
    for name, size in reversed(FACTORS.items()):
        factors[name], rows = rows % size, rows // size
    return dict(reversed(factors.items()))


def load(split: str) -> Images:
    """3 shapes x 6 scales x 40 orientations x 32 x 32 places, 1x64x64, black and white.

    The factors, their values and the order of all images are those of the published set: scales
    0.5, 0.6 ... 1; orientations 0 to 2 pi, both ends among them and so the same picture twice;
    places a pixel apart. The outlines are ours, so pixels differ from the published file's, and
    some neighboring orientations of small squares and ellipses come out alike.

    The published set has no split. Here image i is for testing (73,728 of them) where the
    fractional part of i times the golden ratio is below 0.1, which spreads them evenly.

    Args:
        split: "train" or "test".

    Returns:
        Images whose labels are the factors, "shape" first.

    References:
        Matthey, Higgins, Hassabis & Lerchner, 2017, "dSprites: Disentanglement testing Sprites
        dataset".
    """
    numbers = torch.arange(COUNT)
    for_testing = (numbers.double() * GOLDEN).frac() < TEST_SHARE
    rows = numbers[for_testing if split == "test" else ~for_testing]
    factors = factors_of(numbers)
    everything = Images(Sprites(), factors["shape"], "dsprites", split, factors)
    return everything[rows]
