"""List what can be chosen by name: goals, searches, defenses, models and so on."""

from __future__ import annotations

from typing import Annotated

import typer

from robustvae.cli.listing import print_members


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
    print_members(family)
