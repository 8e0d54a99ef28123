"""Train a model by a recipe; run again, it goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustvae.cli.common import Device, Logger, Quiet


def run(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name, or a YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run; runs/RECIPE by default.")
    ] = None,
    device: Device = "cpu",
    logger: Logger = None,
    quiet: Quiet = False,
) -> None:
    """Train a model by a recipe; run again, it goes on where it was stopped.

    A recipe names the model, the data, the objective and the schedule; an unknown key is an error.

    Examples:

        robustvae train digits-vae   # needs two minutes

        robustvae train my-recipe.yaml --out runs/mine   # needs that file
    """
    from robustvae import zoo
    from robustvae.cli.printing import show
    from robustvae.training import Recipe, train_recipe

    folder, content = out or Path("runs") / Path(recipe).stem, Recipe.read(recipe)
    start = None if content.start is None else zoo.load(content.start)
    train_recipe(
        content,
        folder,
        start=start,
        device=device,
        logger=logger,
        progress=False if quiet else None,
    )
    show(f"checkpoint: {folder}")
