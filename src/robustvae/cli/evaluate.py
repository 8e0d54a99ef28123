"""Measure a model: likelihood, reconstruction, latents, probe, samples, slopes, weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, final

import typer

from robustvae.cli import common
from robustvae.cli.common import OutFile, Quiet, Seed


@final
@dataclass(frozen=True)
class Options(common.Subject):
    """What the command takes."""

    inputs: Annotated[int, typer.Option(min=2, help="Images, balanced over the classes.")] = 1000
    draws: Annotated[int, typer.Option(min=1, help="Latents for each likelihood.")] = 100
    part: Annotated[
        list[str] | None, typer.Option(help="Measure this part only; may be repeated.")
    ] = None
    out: OutFile = None
    seed: Seed = 0
    quiet: Quiet = False


def run(options: Options) -> None:
    """Measure a model: likelihood, reconstruction, latents, probe, samples, slopes, weights.

    Examples:

        robustvae evaluate

        robustvae evaluate runs/mine --part likelihood --draws 1000
    """
    import robustvae as rv
    from robustvae.records import check_folder, plain, write_text

    if options.out is not None:
        check_folder(options.out.parent)
    vae, images = options.load()
    evaluation = rv.evaluate(
        vae,
        images,
        train=common.load_images(options.model, options.data, "train"),
        inputs=options.inputs,
        draws=options.draws,
        parts=options.part,
        seed=options.seed,
        progress=common.progress_line(options.quiet),
    )
    common.show_evaluation(evaluation)
    if options.out is not None:
        write_text(options.out, json.dumps(plain(evaluation), indent=1, sort_keys=True) + "\n")
