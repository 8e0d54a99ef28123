"""Bundled and trained models: list, show, train, table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Device, Quiet, from_options
from robustvae.display import Lines

app = typer.Typer(
    cls=common.CommandGroup,
    help="Bundled models, and those of the recipes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("list")
def list_models() -> None:
    """All models: bundled ones, and those of the recipes, trained or not yet."""
    from robustvae import zoo
    from robustvae.cli.printing import short, show, show_table
    from robustvae.zoo_table import NOT_AUDITED, robustness

    cards = {name: zoo.card(name) for name in zoo.names()}
    waiting = [name for name, card in cards.items() if card["status"] == zoo.NOT_TRAINED]
    rows: list[tuple[Any, ...]] = []
    rows_without_weights: list[tuple[Any, ...]] = []
    for name, card in cards.items():
        if name in waiting:
            continue
        place = "package" if name in zoo.bundled() else "zoo"
        is_kept = card["status"] != zoo.NOT_KEPT
        likelihood = card["metrics"].get("nll")
        # a probability of binary pixels and a density of gray ones have no common scale
        is_density = likelihood is not None and likelihood < 0
        values = robustness(name)
        margins = [
            f"{value}, {key.partition(', ')[2].rstrip(')')}" if ", " in key else value
            for key, value in values.items()
            if key.startswith("attacked")
        ]
        (rows if is_kept else rows_without_weights).append(
            (
                name,
                card["data"],
                card["epochs"],
                place if is_kept else "",
                "" if likelihood is None or is_density else short(likelihood),
                short(-likelihood) if likelihood is not None and is_density else "",
                margins[0] if margins else "" if values else NOT_AUDITED,
                values.get("MS-SSIM under linf 0.1", "" if values else NOT_AUDITED),
            )
        )
    headings = (
        *("name", "data", "epochs", "from"),
        *("-log P(x), nats", "log density, nats", "attacked margin, l2", "MS-SSIM, linf 0.1"),
    )
    titles = {
        "models that rv.load takes by name": rows,
        "measured once, weights not kept: robustvae zoo train NAME": rows_without_weights,
    }
    for title, members in titles.items():
        if members:
            show_table(members, title=title, headings=headings, numbers=(2, 4, 5))
    folder = zoo.folder()
    if folder is not None:
        show(f"zoo: {folder}")
    show("All that was measured on one: robustvae zoo show NAME")
    if waiting:
        show(f"Not yet trained (robustvae zoo train NAME): {', '.join(waiting)}")


@app.command("show")
def show_model(name: Annotated[str, typer.Argument(help="Of a model; see `zoo list`.")]) -> None:
    """The card of one model, with all that was measured on what is stored."""
    from robustvae import zoo
    from robustvae.cli.printing import short, show_table
    from robustvae.zoo_table import not_audited, robustness

    card = zoo.card(name)
    metrics = card.pop("metrics")
    show_table([(key, short(value)) for key, value in card.items()], title=name)
    values = robustness(name) or {"robustness": not_audited(name)}
    show_table(values.items(), title="robustness, from stored records")
    evaluation = None if card["status"] == zoo.NOT_TRAINED else zoo.evaluation(name)
    if evaluation is not None:
        common.show_evaluation(evaluation)
    elif metrics:
        show_table([(key, short(value)) for key, value in metrics.items()])


@final
@dataclass(frozen=True)
class TrainOptions:
    """What the command takes."""

    name: Annotated[str, typer.Argument(help="Of a recipe; see `zoo list`.")]
    run: Annotated[
        Path | None, typer.Option(help="Folder of the training run; runs/NAME by default.")
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model; NAME in the zoo by default.")
    ] = None
    inputs: Annotated[int, typer.Option(min=2, help="Test images for the measures.")] = 2000
    draws: Annotated[int, typer.Option(min=1, help="Latents for each likelihood.")] = 1000
    continuous: Annotated[
        bool, typer.Option("--continuous", help="Score logits as continuous Bernoulli's, too.")
    ] = False
    device: Device = "cpu"
    quiet: Quiet = False


@app.command("train")
@from_options
def train_model(options: TrainOptions) -> None:
    """Train a model by its recipe, measure what is stored, and store it in the zoo.

    A run that was stopped goes on; one that is complete is measured and stored.

    Examples:

        robustvae zoo train mnist-conv28   # needs MNIST and an hour

        robustvae zoo train mnist-conv28 --run runs/elsewhere --inputs 500   # needs the same
    """
    from robustvae import zoo
    from robustvae.cli.printing import show

    folder = zoo.train(
        options.name,
        run=options.run,
        out=options.out,
        inputs=options.inputs,
        draws=options.draws,
        continuous=options.continuous,
        device=None if options.device == "cpu" else options.device,
        # lines also on a terminal, where the training draws its own bar
        progress=None if options.quiet else Lines(every=10, task="measures"),
    )
    show(f"model: {folder}")


@app.command("table")
def write_table(
    out: Annotated[Path | None, typer.Option(help="Write the page here, too.")] = None,
) -> None:
    """What was measured on the stored models, beside the papers' numbers, in markdown."""
    from robustvae.records import write_text
    from robustvae.zoo_table import page

    text = page()
    if out is not None:
        write_text(out, text)
    print(text, end="")
