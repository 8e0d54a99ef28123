"""Figures in one style, as small PNG; matplotlib comes with the extra `plots`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

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
    """Write a figure as a small PNG; "L" is without colors."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert(mode).save(small, "png", optimize=True)
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
