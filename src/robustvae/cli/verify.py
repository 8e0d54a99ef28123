"""Compute a stored audit again and say which of its numbers differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustvae.cli import common
from robustvae.cli.common import Device
from robustvae.cli.entry import FAILED


def run(
    folder: Annotated[Path, typer.Argument(help="Folder that an audit wrote.")],
    inputs: Annotated[
        int, typer.Option(min=0, help="Inputs whose rows are computed again, evenly spaced.")
    ] = 8,
    model: Annotated[
        str | None,
        typer.Option(help="The model, where the record's own way of loading it fails here."),
    ] = None,
    weights: common.Weights = None,
    pixels: common.Pixels = None,
    device: Device = "cpu",
    quiet: common.Quiet = False,
) -> None:
    """Compute a stored audit again and say which of its numbers differ.

    Checks, verdict and headline numbers are made again from the rows; the rows of some inputs from
    the stored inputs and the model. Exits with 1 where anything differs or is missing, the model
    included.

    Examples:

        robustvae verify out

        robustvae verify out --inputs 100

        robustvae verify out --model mine.py:build --weights vae.pt   # needs the audited model
    """
    from robustvae.audit import verify
    from robustvae.cli.printing import show

    vae = None
    if device != "cpu" or not (model is weights is pixels is None):
        vae = common.load_audited(folder, model, device, weights=weights, pixels=pixels)
    with common.progress("verify", quiet) as progress:
        verification = verify(folder, inputs, victim=vae, progress=progress)
    for line in str(verification).splitlines():
        show(line)
    if not verification.passed or (inputs > 0 and verification.recomputed == 0):
        raise typer.Exit(FAILED)
