"""Measure a model: likelihood, reconstruction, latents, probe, samples, slopes, weights."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from robustvae.cli import common
from robustvae.cli.common import DEFAULT_MODEL, Data, Device, Model, OutFile, Quiet, Seed


def run(
    model: Model = DEFAULT_MODEL,
    data: Data = None,
    inputs: Annotated[int, typer.Option(min=2, help="Test images, balanced.")] = 1000,
    draws: Annotated[int, typer.Option(min=1, help="Latents for each likelihood.")] = 100,
    part: Annotated[
        list[str] | None, typer.Option(help="Measure this part only; may be repeated.")
    ] = None,
    out: OutFile = None,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Measure a model: likelihood, reconstruction, latents, probe, samples, slopes, weights.

    Examples:

        robustvae evaluate

        robustvae evaluate runs/mine --part likelihood --draws 1000
    """
    import robustvae as rv
    from robustvae.records import check_folder, plain, write_text

    if out is not None:
        check_folder(out.parent)
    vae = common.load_model(model, device)
    evaluation = rv.evaluate(
        vae,
        common.load_images(model, data, "test"),
        train=common.load_images(model, data, "train"),
        inputs=inputs,
        draws=draws,
        parts=part,
        seed=seed,
        progress=common.progress_line(quiet),
    )
    common.show_evaluation(evaluation)
    if out is not None:
        write_text(out, json.dumps(plain(evaluation), indent=1, sort_keys=True) + "\n")
