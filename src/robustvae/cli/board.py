"""Write a static site of many audits: ranked by protocol, a page for each model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    folder: Annotated[Path, typer.Argument(help="Where audits lie, at any depth.")],
    out: Annotated[Path, typer.Option(help="Folder for the site.")] = Path("board"),
) -> None:
    """Write a static site of many audits: ranked by protocol, a page for each model.

    An audit of no protocol, of a shortened one, or whose verdict did not pass is shown and not
    ranked.

    Examples:

        robustvae board audits --out site
    """
    from robustvae.cli.printing import show
    from robustvae.report.board import board
    from robustvae.zoo_table import training_facts

    show(f"board: {board(folder, out, cards=training_facts)}")
