"""ColorMNIST: every digit of MNIST in seven colours [Kuzina22]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from robustvae.data.images import Images
from robustvae.data.mnist import MNIST

COLOURS = {
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
class Coloured:
    """Every grey image in every colour: the first in all colours, then the second, and so on.

    Args:
        grey: Bytes, (n, H, W).
        colours: Corners of the RGB cube, (k, 3).
    """

    grey: Tensor
    colours: Tensor

    @property
    def shape(self) -> Sequence[int]:
        """(n k, 3, H, W)."""
        return len(self.grey) * len(self.colours), 3, *self.grey.shape[1:]

    def read(self, rows: Tensor, epoch: int) -> Tensor:
        """Images in [0, 1], (n, 3, H, W)."""
        count = len(self.colours)
        grey = self.grey[rows // count].to(torch.float32).div_(255)
        return grey.unsqueeze(1) * self.colours[rows % count].view(-1, 3, 1, 1)


def load(split: str, root: Path, download: bool) -> Images:
    """MNIST in the corners of the RGB cube but black: 420,000 training and 70,000 test images.

    Image 7 i + k is digit i in colour k of `COLOURS`. The labels are "digit" and "colour".

    Args:
        split: "train" or "test".
        root: The folder with MNIST.
        download: Fetch MNIST if it is missing.

    Raises:
        DataError: MNIST is missing or damaged.

    References:
        [Kuzina22] section 5.1; Cemgil et al., 2020 ("Adversarially robust representations with
        smooth encoders"), whose construction it is.
    """
    pixels, labels = MNIST.read(split, root, download)
    source = Coloured(
        torch.tensor(pixels), torch.tensor(list(COLOURS.values()), dtype=torch.float32)
    )
    digit = torch.tensor(labels, dtype=torch.int64).repeat_interleave(len(COLOURS))
    colour = torch.arange(len(COLOURS)).repeat(len(labels))
    kinds = {"digit": digit, "colour": colour}
    return Images(source, digit, name="color_mnist", split=split, labels=kinds)
