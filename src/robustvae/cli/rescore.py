"""Score stored adversarials again, from the images and the model alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustvae.cli import common
from robustvae.cli.common import Device
from robustvae.cli.entry import FAILED


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of stored adversarials, or of an audit.")],
    model: Annotated[
        str | None,
        typer.Option(help="Score with this model instead of the one stored beside them."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Score stored adversarials again, from the images and the model alone.

    Exits with 1 where an image lies outside its ball, or the stored numbers are not what comes out.
    """
    from robustvae.attacks import rescore
    from robustvae.cli.printing import show_table

    stored = model is None
    if stored:  # an audit's record says how its model is loaded
        model = _source(folder)
    scores = rescore(folder, None if model is None else common.load_model(model, device))
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


def _source(folder: Path) -> str | None:
    """How an audit's model is loaded, as its record says; None for any other folder."""
    from robustvae.records import finish_switch
    from robustvae.records.text import read_json, read_text

    finish_switch(folder)
    try:
        facts = read_json(read_text(folder / "record.json"))["model"]
        return str(facts["source"] or facts["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
