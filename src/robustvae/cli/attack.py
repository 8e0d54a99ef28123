"""Attack a model, and its defenses; stores the attacked images so that anyone can score them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Defense, Fresh, Norm, Quiet, Seed


@final
@dataclass(frozen=True)
class Options(common.ModelAndData):
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
    fresh: Fresh = False
    seed: Seed = 0
    quiet: Quiet = False


def run(options: Options) -> None:
    """Attack a model, and its defenses; stores the attacked images so that anyone can score them.

    Each defense is attacked through: the search sees it. The last column is the damage of random
    noise of the same size, which every attack must beat. With --out a run that was stopped goes on
    from the images that it has attacked, unless --fresh is given. An image for which a victim
    raises has an empty row and its reason in failures.json; the exit code is then 1.

    Examples:

        robustvae attack digits-vae --radius 0.5 --out attacked

        robustvae rescore attacked/undefended

        robustvae attack --goal latent-shift --defense posterior-mode:steps=20

        robustvae attack mine.py:build --weights w.pt --data photos/ --pixels -1,1   # needs them
    """
    import robustvae as rv
    from robustvae.attacks import store
    from robustvae.attacks.attack import take_rows
    from robustvae.cli.printing import show, show_table
    from robustvae.errors import StorageError
    from robustvae.records import check_folder, failure_of, in_ranges
    from robustvae.records.files import check_sign
    from robustvae.registry import build

    if options.out is not None:
        check_folder(options.out)
        check_sign(options.out / "failures.json", _FAILURES)
    ball = rv.Ball(options.norm, options.radius)
    attack = rv.Attack(build("goal", options.goal), build("search", options.search), ball)
    vae, images = options.load()
    victims = common.build_victims(vae, options.defense)
    rows = images.choose(options.inputs, stratified=True, generator=rv.generator(options.seed))
    x = images.read(rows).to(device=vae.device, dtype=vae.dtype)
    parts = None if options.out is None else options.out / common.PARTS
    common.check_room(
        options.out, len(x) * len(victims), x[0].numel(), None if options.out is None else vae
    )
    table: list[tuple[str, ...]] = []
    writes: list[Callable[[], Any]] = []

    def show_results() -> None:
        show_table(
            table,
            title=f"{Path(options.model).name} on {images.name} ({images.split}), {len(x)} inputs: "
            f"{options.goal} within {options.norm} {options.radius:g}; means",
            headings=("victim", "size", "score", "damage, l2", "of noise", "inconclusive"),
            numbers=range(1, 6),
        )

    failures: dict[str, dict[int, str]] = {}
    with (
        common.kept(parts, vae, common.facts_of(options, x), fresh=options.fresh) as part_store,
        common.progress("attack", options.quiet) as progress,
    ):
        for number, (name, victim) in enumerate(victims.items()):
            ranges = in_ranges(
                part_store,
                len(x),
                RANGE,
                partial(_attacked, attack, victim, x, options.seed),
                common.say,
                partial(_report, progress, number, len(victims), name),
                name,
            )
            result, damages = _joined(ranges, x)
            reasons = dict(enumerate(map(failure_of, result.status)))
            failures[name] = {i: reason for i, reason in reasons.items() if reason is not None}
            whole = [i for i, reason in reasons.items() if reason is None]
            result, damages = take_rows(result, whole), [values[whole] for values in damages]
            inconclusive = sum(status != "ok" for status in result.status)
            numbers = (result.size, result.score, *damages)
            table.append((name, *(f"{float(values.mean()):.4g}" for values in numbers)))
            table[-1] += (f"{inconclusive} of {len(whole)}",)
            if options.out is not None:
                folder = options.out / ("undefended" if number == 0 else f"defense-{number}")
                words = f"{options.goal}, {options.search}, seed {options.seed}"
                writes.append(partial(store, folder, victim, x[whole], result, ball, attack=words))
        if options.out is not None:
            path = options.out / "failures.json"
            writes.append(partial(_write_failures, path, rows.tolist(), failures))
        try:
            for write in writes:
                write()
        except StorageError:
            show_results()  # the work is not lost with the files
            raise
    show_results()
    if options.out is not None:
        first_folder = options.out / "undefended"
        show(f"written: {options.out}; score it again: robustvae rescore {first_folder}")
    common.check_failures(failures, len(x))


_FAILURES = "images that robustvae attack could not attack"  # what its own file says
RANGE = 20
"""Images that are attacked, and kept, together."""


def _report(
    progress: Any, number: int, count: int, name: str, done: int, total: int, words: str
) -> None:
    """Tell how far the attack on one of several victims is."""
    if progress is not None:
        progress(number * total + done, count * total, f"{name}, {words}")


def _attacked(attack: Any, victim: Any, every: Any, seed: int, rows: range) -> dict[str, Any]:
    """An attack on some inputs, and the damage of it and of noise of its size."""
    import robustvae as rv
    from robustvae.audit.store import packed_result
    from robustvae.loops import packed
    from robustvae.perturb import outward
    from robustvae.seeding import by_row, split

    x = every[rows.start : rows.stop]
    search_noise, start, draws = split(rv.generator(seed), 3)
    result = attack.run(victim, x, generator=search_noise)
    noise = outward(x, attack.ball, generator=by_row(start, "noise", x))
    streams = by_row(draws, "damage", x)
    damages = [packed(_damage(victim, x, y, streams)) for y in (result.x_adv, noise)]
    return {"result": packed_result(result), "damages": damages}


def _joined(parts: list[Any], like: Any) -> tuple[Any, list[Any]]:
    """The attack on all inputs, and the damages, (B,) each."""
    import torch

    from robustvae.attacks import AttackResult
    from robustvae.attacks.attack import nothing_found
    from robustvae.audit.store import packed_result, unpacked_result
    from robustvae.loops import packed, unpacked
    from robustvae.records import Failure

    def empty(failure: Failure) -> dict[str, Any]:
        result = nothing_found(like[failure.row : failure.row + 1], failure.status)
        return {"result": packed_result(result), "damages": [packed(result.score)] * 2}

    parts = [empty(part) if isinstance(part, Failure) else part for part in parts]
    results = [unpacked_result(part["result"], like) for part in parts]
    columns = {name: [getattr(one, name) for one in results] for name in vars(results[0])}
    status = tuple(word for words in columns.pop("status") for word in words)
    tensors = {name: torch.cat(values) for name, values in columns.items()}
    damages = [torch.cat([unpacked(part["damages"][i]) for part in parts]) for i in (0, 1)]
    return AttackResult(status=status, **tensors), damages


def _write_failures(path: Path, numbers: list[int], failures: dict[str, dict[int, str]]) -> None:
    """Write the rows of images that could not be attacked; those of an earlier run go."""
    import json

    from robustvae.records import write_text

    empty = dict.fromkeys(("size", "score", "damage"))
    rows = [
        {"victim": name, "input": numbers[place], **empty, "reason": reason}
        for name, reasons in failures.items()
        for place, reason in reasons.items()
    ]
    if rows:
        write_text(path, json.dumps({"about": _FAILURES, "rows": rows}, indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)


def _damage(victim: Any, x: Any, y: Any, generator: Any) -> Any:
    """How far the reconstruction of y lies from that of x, (B,), with the same noise for both."""
    import torch

    with torch.no_grad():
        state = generator.get_state()
        attacked = victim.reconstruct(y, generator=generator)
        generator.set_state(state)
        clean = victim.reconstruct(x, generator=generator)
    return (attacked - clean).flatten(1).norm(dim=1)
