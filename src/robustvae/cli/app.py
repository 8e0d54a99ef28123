"""Explore a model by hand in the browser: attack, bracket, spectrum; on this machine only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Seed


@final
@dataclass(frozen=True)
class Options(common.ModelAndData):
    """What the command takes."""

    defense: Annotated[
        str | None, typer.Option(help="A defense to look at beside (see `robustvae list defense`).")
    ] = None
    r: Annotated[
        float | None, typer.Option("--r", help="Tolerance at first; from the data by default.")
    ] = None
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860
    seed: Seed = 0


def run(options: Options) -> None:
    """Explore a model by hand in the browser: attack, bracket, spectrum; on this machine only.

    Needs the extra `app`. Nothing is sent or shared; Ctrl-C ends it.

    Examples:

        robustvae app   # needs a browser, and the extra app

        robustvae app mnist-conv28 --defense input-noise:stddev=0.25 --port 8000   # needs MNIST
    """
    from robustvae.app import Explorer
    from robustvae.app.page import serve

    vae, images = options.load()
    victims = common.build_victims(vae, [options.defense] if options.defense else None)
    victim = list(victims.values())[1] if options.defense else None
    explorer = Explorer(vae, images, victim, options.seed)
    r = options.r if options.r is not None else explorer.tolerance()
    serve(explorer, r, options.port)
