"""Score stored adversarials again, from the images and the model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robustvae.cli import common
from robustvae.cli.common import Device
from robustvae.cli.entry import FAILED
from robustvae.errors import ConfigError


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of stored adversarials, or of an audit.")],
    model: Annotated[
        str | None,
        typer.Option(help="Score with this model instead of the one stored beside them."),
    ] = None,
    weights: common.Weights = None,
    pixels: common.Pixels = None,
    device: Device = "cpu",
) -> None:
    """Score stored adversarials again, from the images and the model alone.

    Exits with 1 where an image lies outside its ball, or the stored numbers are not what comes out.
    """
    from robustvae.attacks import rescore
    from robustvae.cli.printing import show_table
    from robustvae.records import finish_switch

    stored = model is None
    looks: dict[str, Any] = {"weights": weights, "pixels": pixels}
    finish_switch(folder)
    vae = None
    if (folder / "record.json").is_file():  # an audit's record says how its model is loaded
        vae = common.load_audited(folder, model, device, **looks)
    elif model is not None:
        vae = common.load_model(model, device, **looks)
    elif not (weights is pixels is None):
        raise ConfigError(
            "--weights and --pixels are of a model, got none: name it with --model FILE.py:FACTORY"
        )
    scores = rescore(folder, vae)
    inside = int(scores.inside.sum())
    show_table(
        [
            ("inside the ball and the box", f"{inside} of {len(scores.inside)}"),
            ("mean size", f"{float(scores.size.mean()):.4g}"),
            ("mean damage, l2 of the reconstructions", f"{float(scores.damage.mean()):.4g}"),
            ("mean symmetric KL, nats", f"{float(scores.divergence.mean()):.4g}"),
            ("weights are those of the manifest", "yes" if scores.same_model else "no"),
            ("size and damage are the stored ones", "yes" if scores.agrees else "no"),
        ],
        title=f"{folder}: {scores.manifest['attack']}",
        headings=("", "recomputed"),
        numbers=[1],
    )
    as_stored = scores.agrees and scores.same_model
    if inside < len(scores.inside) or (stored and not as_stored):
        raise typer.Exit(FAILED)
