"""Marks of the figures: a class and a size make a function from a place to a piece of SVG."""

from __future__ import annotations

from collections.abc import Callable

Mark = Callable[[float, float], str]


def dot(kind: str, radius: float) -> Mark:
    """A disc."""
    return lambda x, y: f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'


def diamond(kind: str, radius: float) -> Mark:
    """A square on its tip."""
    r = radius
    return _path(kind, 0.0, -r, f"l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z")


def arrow(kind: str, radius: float) -> Mark:
    """An arrow upwards, for what lies beyond the axis."""
    r = radius
    strokes = f"v{-2.4 * r:.1f}m{-r:.1f} {r:.1f}l{r:.1f} {-r:.1f}l{r:.1f} {r:.1f}"
    return _path(kind, 0.0, 1.2 * r, strokes)


def cross(kind: str, radius: float) -> Mark:
    """A cross of two strokes."""
    r = radius
    strokes = f"l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}"
    return _path(kind, -r, -r, strokes)


def bar(kind: str) -> Mark:
    """A short bar, for legends."""
    return lambda x, y: f'<rect class="{kind}" x="{x - 5}" y="{y - 6}" width="10" height="12"/>'


def _path(kind: str, right: float, down: float, strokes: str) -> Mark:
    """Strokes that start beside the place."""
    return lambda x, y: f'<path class="{kind}" d="M{x + right:.1f} {y + down:.1f}{strokes}"/>'
