"""Which Lipschitz constants guarantee a margin for every input, before any training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli.common import Displacement, Quantile


@final
@dataclass(frozen=True)
class Options:
    """What the command takes."""

    margin: Annotated[float, typer.Option(help="Certified margin wanted, l2 in pixel units.")]
    r: Annotated[float, typer.Option(help="Output distance tolerated, l2 in pixel units.")]
    m: Quantile = 0.5
    displacement: Displacement = "centered"
    latent: Annotated[int, typer.Option(min=1, help="Dimension of the latent.")] = 10
    stddev: Annotated[float, typer.Option(help="The fixed sigma of the encoder.")] = 0.1
    ratio: Annotated[float, typer.Option(help="Encoder's constant over the decoder's.")] = 1.0
    likelihood: Annotated[str, typer.Option(help="As of lipschitz-vae.")] = "continuous_bernoulli"
    recipe: Annotated[Path | None, typer.Option(help="Write a recipe for it here, YAML.")] = None
    data: Annotated[str, typer.Option(help="Data set of the recipe.")] = "mnist"
    epochs: Annotated[int, typer.Option(min=1, help="Of the recipe.")] = 30


def run(options: Options) -> None:
    """Which Lipschitz constants guarantee a margin for every input, before any training.

    Examples:

        robustvae design --margin 0.3 --r 8

        robustvae design --margin 0.3 --r 8 --recipe mine.yaml

        robustvae train mine.yaml --out runs/mine   # needs MNIST and half an hour

        robustvae certify runs/mine --r 8 --data mnist   # needs that model
    """
    from robustvae.certificates import design
    from robustvae.cli.printing import floored, show_table

    question = f"r = {options.r:g}, m = {options.m:g}"
    constants = design(
        options.margin,
        r=options.r,
        m=options.m,
        displacement=options.displacement,
        latent=options.latent,
        stddev=options.stddev,
        ratio=options.ratio,
        likelihood=options.likelihood,
    )
    show_table(
        [
            ("encoder_lipschitz, at most", floored(constants.encoder_lipschitz)),
            ("decoder_lipschitz, at most", floored(constants.decoder_lipschitz)),
            ("stddev", f"{constants.stddev:g}"),
            ("latent", constants.latent),
            ("certified for every input, at least", floored(constants.margin)),
        ],
        title=f"margin {options.margin:g} at {question}, {options.displacement}, l2",
        headings=("option of lipschitz-vae", "value"),
        numbers=[1],
    )
    if options.recipe is None:
        return
    margin = f"{options.displacement} margin of {options.margin:g}"
    about = f"Every input has a {margin} at {question}."
    _write(options.recipe, constants, about=about, data=options.data, epochs=options.epochs)


def _write(recipe: Path, constants: Any, *, about: str, data: str, epochs: int) -> None:
    import yaml

    import robustvae as rv
    from robustvae.cli.printing import show
    from robustvae.records import write_text
    from robustvae.training import Recipe

    options = {
        "image_shape": list(rv.data.load(data, split="train").image_shape),
        "latent": constants.latent,
        "encoder_lipschitz": math.floor(constants.encoder_lipschitz * 1e6) / 1e6,
        "decoder_lipschitz": math.floor(constants.decoder_lipschitz * 1e6) / 1e6,
        "stddev": constants.stddev,
        "likelihood": constants.likelihood,
    }
    content = {
        "name": recipe.stem,
        "about": about,
        "data": {"name": data},
        "model": {"name": "lipschitz-vae", **options},
        "training": {"epochs": epochs, "batch_size": 128, "lr": 1e-3},
    }
    Recipe.model_validate(content)
    write_text(recipe, yaml.safe_dump(content, sort_keys=False))
    show(f"written: {recipe}")
