"""Pulses in two channels, drawn from a fixed seed: one-dimensional signals without any file."""

from __future__ import annotations

import torch
from torch import Tensor

from robustvae.data.images import Images
from robustvae.seeding import generator, rand

LENGTH = 128
COUNTS = {"train": 900, "test": 200}
CLASSES = ("normal", "missing beat", "double beat", "drift", "burst")
_SHARES = (0.0, 0.6, 0.7, 0.8, 0.9)  # of the numbers in [0, 1), where each class begins
_BEATS = 4
_PERIOD = LENGTH / _BEATS


def load(split: str) -> Images:
    """Four beats with a little noise in two channels, and four kinds of faults.

    The second channel sees each beat later and weaker. A fault is one beat missing, one doubled, a
    base line that drifts, or a burst of fast oscillation. In the owner's unit values lie in
    [-1, 1] and 0 is rest; in [0, 1] rest is 0.5.

    Args:
        split: "train" (900 signals) or "test" (200), drawn from different seeds.

    Returns:
        Images (N, 2, 1, 128) in [0, 1], labels 0 (normal) to 4 with names.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("drawn-signals", split="test")
        >>> images.shape, images.class_name(1)
        ((200, 2, 1, 128), 'missing beat')
    """
    count = COUNTS[split]
    stream = generator(3 if split == "train" else 4)
    like = torch.zeros(1, dtype=torch.float32)
    numbers = rand(count, 8, like=like, generator=stream)
    hiss = rand(count, 2, LENGTH, like=like, generator=stream)
    y = (numbers[:, :1] >= torch.tensor(_SHARES, dtype=torch.float32)).sum(1) - 1
    time = torch.arange(LENGTH, dtype=torch.float32)
    start = (8 + 12 * numbers[:, 1]).unsqueeze(1)
    faulty = (numbers[:, 2] * _BEATS).long()
    height = (0.5 + 0.2 * numbers[:, 3]).unsqueeze(1)
    channels = [torch.zeros(count, LENGTH, dtype=torch.float32) for _ in range(2)]
    for beat in range(_BEATS):
        is_here = faulty == beat
        strength = (~((y == 1) & is_here)).unsqueeze(1) * height
        harmonic = 0.8 * ((y == 2) & is_here).unsqueeze(1) * height
        for channel, (delay, gain) in enumerate(((0.0, 1.0), (5.0, 0.6))):
            place = start + beat * _PERIOD + delay
            channels[channel] += gain * strength * _pulse(time - place)
            channels[channel] += gain * harmonic * _pulse(time - place - 11)
    x = torch.stack(channels, 1)
    drift = ((y == 3) * (0.35 + 0.15 * numbers[:, 4])).unsqueeze(1)
    x += (drift * (time / LENGTH - 0.5)).unsqueeze(1)
    inside = (time - (20 + 80 * numbers[:, 5:6])).abs() < 10
    burst = ((y == 4) * (0.25 + 0.1 * numbers[:, 6])).unsqueeze(1)
    x += (burst * inside * (2.2 * time).sin()).unsqueeze(1)
    x = (x + 0.04 * (hiss - 0.5)).clamp(-1, 1)
    return Images(((x + 1) / 2).unsqueeze(2), y, "drawn-signals", split).with_classes(CLASSES)


def _pulse(distance: Tensor) -> Tensor:
    """A beat: up, a dip behind it, and back to rest."""
    return (-(distance / 2).square() / 2).exp() - 0.4 * (-((distance - 5) / 2.5).square() / 2).exp()
