"""The listing of the registry, without typer: it answers at once."""

from __future__ import annotations

import textwrap

from robustvae.errors import single_line
from robustvae.registry import FAMILIES, Entry, describe

_WIDTH = 100  # of a line; what is listed is often read in a pipe, which has no width


def print_members(family: str | None = None) -> None:
    """Print the members of a family, or of every family that has some."""
    for name in FAMILIES if family is None else [family]:
        entries = describe(name)
        if family is None and not entries:
            continue
        print(f"{name}: {FAMILIES[name]}")
        width = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:
            print(_line(entry, width))
        print()


def _line(entry: Entry, width: int) -> str:
    origin = "" if entry.origin == "robustvae" else f" [{entry.origin}]"
    indent = " " * (width + 4)
    summary = textwrap.wrap(
        single_line(entry.summary + origin),
        _WIDTH,
        initial_indent=f"  {single_line(entry.name):{width}}  ",
        subsequent_indent=indent,
    )
    return "\n".join(summary or [f"  {entry.name}"])
