"""A data source: stripes of one of two directions."""

from pathlib import Path

import torch

from robustvae.data import Images
from robustvae.registry import register


@register("data", "stripes")
def load_stripes(split: str, root: Path, download: bool) -> Images:
    """Gray stripes of 8 x 8 pixels; the label is their direction."""
    count = 200 if split == "train" else 60
    phase = torch.linspace(0, 3, count).view(-1, 1, 1, 1)
    wave = 0.5 + 0.4 * torch.sin(phase + torch.arange(8.0)).view(count, 1, 1, 8)
    y = torch.arange(count) % 2
    across = wave.expand(count, 1, 8, 8)
    x = torch.where(y.view(-1, 1, 1, 1) == 1, across, across.mT)
    return Images(x.contiguous(), y, "stripes", split)
