"""ColorMNIST: every digit of MNIST in seven colors [Kuzina22]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from robustvae.data.images import Images
from robustvae.data.mnist import MNIST

COLORS = {
    "blue": (0, 0, 1),
    "green": (0, 1, 0),
    "cyan": (0, 1, 1),
    "red": (1, 0, 0),
    "magenta": (1, 0, 1),
    "yellow": (1, 1, 0),
    "white": (1, 1, 1),
}


@final
@dataclass(frozen=True, eq=False)
class Colored:
    """Every gray image in every color: the first in all colors, then the second, and so on.

    Args:
        gray: Bytes, (n, H, W).
        colors: Corners of the RGB cube, (k, 3).
    """

    gray: Tensor
    colors: Tensor

    @property
    def shape(self) -> Sequence[int]:
        """(n k, 3, H, W)."""
        return len(self.gray) * len(self.colors), 3, *self.gray.shape[1:]

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1], (n, 3, H, W)."""
        count = len(self.colors)
        gray = self.gray[rows // count].to(torch.float32).div_(255)
        return gray.unsqueeze(1) * self.colors[rows % count].view(-1, 3, 1, 1)


def load(split: str, root: Path, download: bool) -> Images:
    """MNIST in the corners of the RGB cube but black: 420,000 training and 70,000 test images.

    Image 7 i + k is digit i in color k of `COLORS`. The labels are "digit" and "color".

    Args:
        split: "train" or "test".
        root: The folder with MNIST.
        download: Fetch MNIST if it is missing.

    Raises:
        DataError: MNIST is missing or damaged.

    References:
        [Kuzina22] section 4.2; Cemgil et al., 2020 ("Adversarially robust representations with
        smooth encoders"), whose construction it is.
    """
    pixels, labels = MNIST.read(split, root, download)
    source = Colored(torch.tensor(pixels), torch.tensor(list(COLORS.values()), dtype=torch.float32))
    digit = torch.tensor(labels, dtype=torch.int64).repeat_interleave(len(COLORS))
    color = torch.arange(len(COLORS)).repeat(len(labels))
    kinds = {"digit": digit, "color": color}
    return Images(source, digit, name="color_mnist", split=split, labels=kinds)
