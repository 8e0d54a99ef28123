"""Figures in one style, as small PNG; matplotlib comes with the extra `plots`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from robustvae.errors import MissingExtraError
from robustvae.records import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.0,
    "figure.dpi": 110.0,
    "legend.frameon": False,
}


def save(figure: Figure, path: Path, mode: str = "RGB") -> None:
    """Write a figure as a small PNG; "L" is without colors, in 32 shades."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    picture = Image.open(drawn).convert(mode)
    # noise on a black ground does not compress: 32 shades look the same and take a fifth less
    picture = picture.quantize(32) if mode == "L" else picture
    picture.save(small, "png", optimize=True)
    write_bytes(path, small.getvalue())


@contextlib.contextmanager
def new_figures() -> Iterator[Callable[[float, float], Figure]]:
    """Makes figures of so many inches; within, the studies' style holds.

    Raises:
        MissingExtraError: No matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "pictures need matplotlib: pip install 'robustvae[plots]'"
        ) from None
    with matplotlib.rc_context(STYLE):
        yield lambda width, height: Figure((width, height), layout="constrained")


def gallery(rows: Mapping[str, Tensor], path: Path) -> None:
    """A line of images (n, C, H, W) for each name, in gray or in color, as one PNG."""
    columns = max(len(images) for images in rows.values())
    with new_figures() as new:
        figure = new(1.6 + 0.8 * columns, 0.8 * len(rows))
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, images) in zip(grid, rows.items(), strict=True):
            for axes, image in zip(line, images, strict=False):
                picture: Any = image.detach().clamp(0, 1).permute(1, 2, 0).squeeze(2).cpu().numpy()
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes in figure.axes:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        save(figure, path, "L" if images.shape[1] == 1 else "RGB")
