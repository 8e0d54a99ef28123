"""What every source of images promises."""

from __future__ import annotations

import torch

from robustvae.data import Images
from robustvae.testing.contracts import require


def check_source(images: Images) -> None:
    """Check a source's contract: images in [0, 1] that are the same however they are read.

    Args:
        images: What the source returned, at least two images.

    Raises:
        ContractError: A broken promise, in a sentence.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.testing import check_source
        >>> check_source(rv.data.load("digits", split="test"))
    """
    what = f"the data {images.name}"
    require(len(images) >= 2, f"{what} holds {len(images)} images, not at least 2")
    rows = torch.tensor([0, len(images) - 1])
    x = images.read(rows)
    require(
        x.dtype == torch.float32 and x.shape[1:] == images.image_shape,
        f"{what} reads {tuple(x.shape)} {x.dtype}, not float32 of {images.image_shape}",
    )
    require(
        bool(x.isfinite().all()) and float(x.min()) >= 0 and float(x.max()) <= 1,
        f"{what} has pixels outside [0, 1]",
    )
    backwards = images.read(rows.flip(0)).flip(0)
    require(torch.equal(x, backwards), f"{what} gives other images in another order")
    part = images[rows]
    require(
        torch.equal(part.read(torch.arange(2)), x) and torch.equal(part.y, images.y[rows]),
        f"{what} gives other images or labels after a selection",
    )
    require(images.y.shape == (len(images),), f"{what} has {tuple(images.y.shape)} labels")
