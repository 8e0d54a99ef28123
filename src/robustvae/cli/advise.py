"""What holds at which price: measured choices of training and defense for a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, final

import typer

from robustvae.cli.common import OutFile

if TYPE_CHECKING:
    from robustvae.training.choices import Choice

_LETTERS = "abcdefgh"


@final
@dataclass(frozen=True)
class Options:
    """What the command takes."""

    data: Annotated[str, typer.Option(help="Data set: mnist or fashion_mnist.")] = "mnist"
    similarity: Annotated[
        float | None, typer.Option(help="Least MS-SSIM under attack, in [0, 1].")
    ] = None
    radius: Annotated[float, typer.Option(help="l-infinity radius of it: 0.1 or 0.2.")] = 0.2
    price: Annotated[
        float | None, typer.Option(help="Most clean error, as a multiple of the plain model's.")
    ] = None
    certified: Annotated[
        float | None, typer.Option(help="Least mean certified l2 radius, smoothed.")
    ] = None
    gradients: Annotated[
        int | None, typer.Option(help="Most gradients an image at test time; 0: no defense.")
    ] = None
    out: OutFile = None


def run(options: Options) -> None:
    """What holds at which price: measured choices of training and defense for a data set.

    Every row is read from a stored record; none is computed. A star marks the rows that no other
    beats in both clean error and similarity.

    Examples:

        robustvae advise

        robustvae advise --data fashion_mnist --price 1.3 --gradients 0
    """
    from robustvae.cli.printing import show, show_table
    from robustvae.records import check_file, plain, write_text
    from robustvae.training.choices import advise, measured_choices, prices

    if options.out is not None:
        check_file(options.out)
    choices = advise(
        options.data,
        similarity=options.similarity,
        radius=options.radius,
        price=options.price,
        certified=options.certified,
        gradients=options.gradients,
    )
    least = prices(measured_choices())[options.data]
    attacks = list(dict.fromkeys(f"{c.images} images, {c.attacks}" for c in choices))
    if choices:
        show_table(
            [_row(choice, least, attacks) for choice in choices],
            title=f"{options.data}: MS-SSIM under the worst attack tried, at two l-infinity radii",
            headings=(
                "",
                "model",
                "defense",
                "clean error",
                "at 0.1",
                "at 0.2",
                "certified l2",
                "gradients",
                "epochs; step",
                "attacks",
            ),
            numbers=(7,),
        )
        for letter, line in zip(_LETTERS, attacks, strict=False):
            show(f"{letter}: {line}")
        show(f"Records: {', '.join(sorted({choice.source for choice in choices}))}")
    else:
        show("No measured choice meets all of that: ask for less, or measure another.")
    if options.out is not None:
        write_text(options.out, json.dumps(plain(choices), indent=1) + "\n")


def _row(choice: Choice, least: float, attacks: list[str]) -> tuple[object, ...]:
    from robustvae.cli.printing import floored

    return (
        "*" if choice.front else "",
        choice.model,
        "none" if choice.defense == "posterior-mean" else choice.defense.partition(":")[0],
        f"{choice.error:.2f} ({choice.error / least:.2f}x)",
        *(
            f"{mean:.3f} ± {stderr:.3f}"
            for mean, stderr in zip(choice.similarity, choice.similarity_stderr, strict=True)
        ),
        "" if choice.certified is None else f"{floored(choice.certified)} ({choice.certified_at})",
        choice.gradients,
        f"{choice.epochs:g}; {choice.step_cost:g}x",
        _LETTERS[attacks.index(f"{choice.images} images, {choice.attacks}")],
    )
