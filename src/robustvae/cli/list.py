"""List what can be chosen by name: goals, searches, defenses, models and so on."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from robustvae.registry import FAMILIES, Entry, describe

_WIDTH = 100  # of a line; what is listed is often read in a pipe, which has no width


def run(
    family: Annotated[
        str | None,
        typer.Argument(help="goal, search, defense, model, ...; all of them if left out."),
    ] = None,
) -> None:
    """List what can be chosen by name: goals, searches, defenses, models and so on.

    A name stands in plans, recipes and on the command line, with its fields after a colon:
    robust-posterior:norm=linf,radius=0.2. So may package.module:Name, for code of your own.

    Examples:

        robustvae list

        robustvae list goal
    """
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
    from robustvae.errors import single_line

    origin = "" if entry.origin == "robustvae" else f" [{entry.origin}]"
    indent = " " * (width + 4)
    summary = textwrap.wrap(
        single_line(entry.summary + origin),
        _WIDTH,
        initial_indent=f"  {single_line(entry.name):{width}}  ",
        subsequent_indent=indent,
    )
    return "\n".join(summary or [f"  {entry.name}"])
