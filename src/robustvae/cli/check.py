"""Diagnose a model: mode, range, randomness, gradients, finite values; with remedies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import typer

from robustvae.cli import common
from robustvae.cli.entry import FAILED


@final
@dataclass(frozen=True)
class Options(common.ModelAndData):
    """What the command takes."""

    inputs: Annotated[int, typer.Option(min=1, max=8, help="How many inputs to look at.")] = 8
    defense: Annotated[str | None, typer.Option(help="Look at the model behind this defense.")] = (
        None
    )
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the verdict and what needs a remedy only.")
    ] = False


def run(options: Options) -> None:
    """Diagnose a model: mode, range, randomness, gradients, finite values; with remedies.

    Examples:

        robustvae check

        robustvae check my_model.py:build --weights w.pt --data photos/ --pixels -1,1   # needs them
    """
    import robustvae as rv
    from robustvae.cli.printing import show
    from robustvae.registry import build

    vae, images = options.load()
    subject = vae
    if options.defense is not None:
        subject = rv.Victim(vae, build("defense", options.defense))
    diagnosis = rv.check(subject, images[: min(options.inputs, len(images))])
    first, *items = str(diagnosis).splitlines()
    show(first)
    for line in items:
        if not (options.quiet and line.startswith("passed")):
            show(line)
    if not diagnosis.passed:
        raise typer.Exit(FAILED)
