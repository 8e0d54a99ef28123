"""Colored shapes on smooth backgrounds, drawn from a fixed seed: pictures without any file."""

from __future__ import annotations

import torch

from robustvae.data.images import Images
from robustvae.seeding import generator, rand

SIDE = 32
COUNTS = {"train": 1200, "test": 200}
CLASSES = ("disc", "square", "cross")


def load(split: str) -> Images:
    """Color pictures of 32 x 32 pixels: a disc, a square or a cross on a gradient.

    Args:
        split: "train" (1,200 pictures) or "test" (200), drawn from different seeds.

    Returns:
        Images in [0, 1], (N, 3, 32, 32), labels 0 to 2 with names.

    Examples:
        >>> import robustvae as rv
        >>> rv.data.load("drawn-shapes", split="test").shape
        (200, 3, 32, 32)
    """
    count = COUNTS[split]
    numbers = rand(
        count,
        14,
        like=torch.zeros(1, dtype=torch.float32),
        generator=generator(1 if split == "train" else 2),
    )
    y = torch.arange(count) % len(CLASSES)
    axis = torch.linspace(0, 1, SIDE, dtype=torch.float32)
    down, right = axis.view(1, -1, 1), axis.view(1, 1, -1)

    def column(i: int) -> torch.Tensor:
        return numbers[:, i].view(-1, 1, 1)

    tilt = (column(6) - 0.5) * down + (column(7) - 0.5) * right
    background = (0.3 + 0.4 * numbers[:, 0:3]).view(-1, 3, 1, 1) + 0.5 * tilt.unsqueeze(1)
    ink = numbers[:, 3:6].view(-1, 3, 1, 1)
    top, left = 0.3 + 0.4 * column(8), 0.3 + 0.4 * column(9)
    size = 0.12 + 0.12 * column(10)
    height, width = (down - top).abs(), (right - left).abs()
    disc = (height.square() + width.square()).sqrt() < size
    square = torch.maximum(height, width) < 0.85 * size
    arms = torch.minimum(height, width) < 0.35 * size
    cross = (torch.maximum(height, width) < 1.1 * size) & arms
    label = y.view(-1, 1, 1)
    mask = torch.where(label == 0, disc, torch.where(label == 1, square, cross)).unsqueeze(1)
    x = torch.where(mask, ink, background).clamp(0, 1)
    return Images(x, y, "drawn-shapes", split).with_classes(CLASSES)
