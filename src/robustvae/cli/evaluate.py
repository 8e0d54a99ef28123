"""Measure a model: likelihood, reconstruction, latents, probe, samples, slopes, weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Fresh, OutFile, Quiet, Seed


@final
@dataclass(frozen=True)
class Options(common.ModelAndData):
    """What the command takes."""

    inputs: Annotated[int, typer.Option(min=2, help="Images, balanced over the classes.")] = 1000
    draws: Annotated[int, typer.Option(min=1, help="Latents for each likelihood.")] = 100
    part: Annotated[
        list[str] | None, typer.Option(help="Measure this part only; may be repeated.")
    ] = None
    out: OutFile = None
    fresh: Fresh = False
    seed: Seed = 0
    quiet: Quiet = False


def run(options: Options) -> None:
    """Measure a model: likelihood, reconstruction, latents, probe, samples, slopes, weights.

    With --out a run that was stopped goes on from what it has measured, unless --fresh is given.
    Images for which the model raises are left out and named; the exit code is then 1.

    Examples:

        robustvae evaluate

        robustvae evaluate runs/mine --part likelihood --draws 1000   # needs that model
    """
    import robustvae as rv
    from robustvae.errors import StorageError
    from robustvae.records import check_file, plain, write_text

    if options.out is not None:
        check_file(options.out)
    vae, images = options.load()
    train = common.load_images(options.model, options.data, "train")
    common.check_room(options.out, options.inputs)
    place = common.parts_beside(options.out)
    with (
        common.kept(place, vae, (), fresh=options.fresh) as store,
        common.progress("evaluate", options.quiet) as progress,
    ):
        evaluation = rv.evaluate(
            vae,
            images,
            train=train,
            inputs=options.inputs,
            draws=options.draws,
            parts=options.part,
            seed=options.seed,
            keep=store.folder,
            progress=progress,
            notice=common.say,
        )
        if options.out is not None:
            text = json.dumps(plain(evaluation), indent=1, sort_keys=True) + "\n"
            try:
                write_text(options.out, text)
            except StorageError:
                common.show_evaluation(evaluation)  # the work is not lost with the file
                raise
    common.show_evaluation(evaluation)
    failures = {int(row): reason for row, reason in evaluation.facts["failures"].items()}
    common.check_failures({"evaluate": failures}, len(images))
