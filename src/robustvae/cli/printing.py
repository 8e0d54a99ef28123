"""The one printer of the command line: text from outside never styles, moves or floods a terminal.

Everything that a command prints goes through `show` or `show_table`: markup is off, control
characters are spelled out, and long texts are shortened.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from robustvae.errors import single_line

_CELL = 300  # characters of a cell: a sentence of remedy fits, a flood does not
_LINE = 4000  # and of a line, which may list a hundred names
_PAGE = 160  # columns where no terminal says how many it has


def console(*, stderr: bool = False) -> Console:
    """A console without markup; outside a terminal wide enough for every table."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PAGE
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def show(text: object, *, stderr: bool = False) -> None:
    """Print one line, whatever the text holds."""
    console(stderr=stderr).print(single_line(text, _LINE), soft_wrap=True)


def show_table(
    rows: Iterable[Sequence[object]],
    *,
    title: object = "",
    headings: Sequence[str] = (),
    numbers: Sequence[int] = (),
) -> None:
    """Print a table.

    Args:
        rows: Its cells, row by row.
        title: Above it.
        headings: One for each column; without them there is no heading line.
        numbers: Columns that hold numbers, aligned to the right, counted from 0.
    """
    cells = [[single_line(cell, _CELL) for cell in row] for row in rows]
    if title:  # a line of its own: rich would fold it to the width of a narrow table
        show(title)
    table = Table(show_header=bool(headings))
    for column in range(max(map(len, [headings, *cells]))):
        table.add_column(
            single_line(headings[column], _CELL) if headings else "",
            justify="right" if column in numbers else "left",
        )
    for row in cells:
        table.add_row(*row)
    console().print(table)


def short(value: Any) -> str:
    """A value for a cell: floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def floored(value: float) -> str:
    """Four decimals, rounded down: a certified radius never claims more than was proved."""
    return f"{math.floor(value * 1e4) / 1e4:.4f}"
