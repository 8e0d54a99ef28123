"""Attack a model, and its defenses; stores the attacked images so that anyone can score them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Defense, Norm, Quiet, Seed


@final
@dataclass(frozen=True)
class Options(common.Subject):
    """What the command takes."""

    inputs: Annotated[int, typer.Option(min=1, help="Images, balanced over the classes.")] = 20
    goal: Annotated[
        str, typer.Option(help="What the attack raises; see `robustvae list goal`.")
    ] = "maximum-damage"
    search: Annotated[
        str, typer.Option(help="How it looks, such as projected-ascent:steps=100,restarts=5.")
    ] = "projected-ascent"
    norm: Norm = "l2"
    radius: Annotated[
        float, typer.Option(help="Size of the perturbation in that norm, in pixel units.")
    ] = 1.0
    defense: Defense = None
    out: Annotated[
        Path | None, typer.Option(help="Folder to store the attacked images in, for `rescore`.")
    ] = None
    seed: Seed = 0
    quiet: Quiet = False


def run(options: Options) -> None:
    """Attack a model, and its defenses; stores the attacked images so that anyone can score them.

    Each defense is attacked through: the search sees it. The last column is the damage of random
    noise of the same size, which every attack must beat.

    Examples:

        robustvae attack digits-vae --radius 0.5 --out attacked

        robustvae rescore attacked/undefended

        robustvae attack --goal latent-shift --defense posterior-mode:steps=20

        robustvae attack my_model.py:build --weights w.safetensors --data photos/ --pixels -1,1
    """
    import robustvae as rv
    from robustvae.attacks import store
    from robustvae.cli.printing import show, show_table
    from robustvae.perturb import outward
    from robustvae.records import check_folder
    from robustvae.registry import build
    from robustvae.seeding import split as generators

    if options.out is not None:
        check_folder(options.out)
    ball = rv.Ball(options.norm, options.radius)
    attack = rv.Attack(build("goal", options.goal), build("search", options.search), ball)
    vae, images = options.load()
    victims = common.build_victims(vae, options.defense)
    rows = images.choose(options.inputs, stratified=True, generator=rv.generator(options.seed))
    x = images.read(rows).to(device=vae.device, dtype=vae.dtype)
    table = []
    with common.progress("attack", options.quiet) as progress:
        for number, (name, victim) in enumerate(victims.items()):
            if progress is not None:
                progress(number, len(victims), name)
            search_noise, start, draws = generators(rv.generator(options.seed), 3)
            result = attack(victim, x, generator=search_noise)
            noise = outward(x, ball, generator=start)
            damages = [_damage(victim, x, y, draws) for y in (result.x_adv, noise)]
            inconclusive = sum(status != "ok" for status in result.status)
            numbers = (result.size, result.score, *damages)
            table.append((name, *(f"{float(values.mean()):.4g}" for values in numbers)))
            table[-1] += (f"{inconclusive} of {len(x)}",)
            if options.out is not None:
                folder = options.out / ("undefended" if number == 0 else f"defense-{number}")
                words = f"{options.goal}, {options.search}"
                store(folder, victim, x, result, ball, attack=words)
    show_table(
        table,
        title=f"{Path(options.model).name} on {images.name} ({images.split}), {len(x)} inputs: "
        f"{options.goal} within {options.norm} {options.radius:g}; means",
        headings=("victim", "size", "score", "damage, l2", "of noise", "inconclusive"),
        numbers=range(1, 6),
    )
    if options.out is not None:
        first_folder = options.out / "undefended"
        show(f"written: {options.out}; score it again: robustvae rescore {first_folder}")


def _damage(victim: Any, x: Any, y: Any, generator: Any) -> Any:
    """How far the reconstruction of y lies from that of x, (B,), with the same noise for both."""
    import torch

    with torch.no_grad():
        state = generator.get_state()
        attacked = victim.reconstruct(y, generator=generator)
        generator.set_state(state)
        clean = victim.reconstruct(x, generator=generator)
    return (attacked - clean).flatten(1).norm(dim=1)
