"""Certify how far inputs may be pushed: radii that no attack can beat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Displacement, Fresh, Norm, OutFile, Quantile, Quiet, Seed


@final
@dataclass(frozen=True)
class Options(common.ModelAndData):
    """What the command takes."""

    inputs: Annotated[int, typer.Option(min=1, help="Images, balanced over the classes.")] = 100
    r: Annotated[float, typer.Option(help="Output distance tolerated, l2 in pixel units.")] = 1.0
    m: Quantile = 0.5
    displacement: Displacement = "centered"
    norm: Norm = "l2"
    method: Annotated[
        list[str] | None,
        typer.Option(help="A bound to take instead of the guaranteed ones; may be repeated."),
    ] = None
    defense: Annotated[
        str | None,
        typer.Option(help="A defense's spec: input-noise:stddev=0.25 is certified by smoothing."),
    ] = None
    center: Annotated[
        str | None,
        typer.Option(help="What full measures from: own with input noise, mean otherwise."),
    ] = None
    draws: Annotated[
        int | None, typer.Option(min=1, help="Draws of the sampled methods, per input.")
    ] = None
    out: OutFile = None
    fresh: Fresh = False
    seed: Seed = 0
    quiet: Quiet = False


def run(options: Options) -> None:
    """Certify how far inputs may be pushed: radii that no attack can beat.

    A certificate of radius R says: no perturbation of norm below R brings the probability that the
    output stays within r down to m or below. Radius 0 means that nothing could be proved. Models
    that nothing constrains, and hierarchies, have certificates by the method neyman_pearson; any
    model has one behind noise on its input. Kinds of certificates are printed apart. With --out a
    run that was stopped goes on from the inputs that it finished, unless --fresh is given. An input
    for which the model raises has no radius (null) and its reason; the exit code is then 1.

    Examples:

        robustvae certify

        robustvae certify my_model.py:build --weights w.pt --data photos/ --r 2   # needs them

        robustvae certify digits-vae --method neyman_pearson --inputs 10

        robustvae certify digits-vae --defense input-noise:stddev=0.1 --displacement full --inputs 5

        robustvae certify digits-lipschitz-vae --r 1.5 --displacement paired --out radii.json
    """
    import robustvae as rv
    from robustvae.certificates.ranges import certify_in_ranges
    from robustvae.cli.printing import show
    from robustvae.errors import StorageError
    from robustvae.records import check_file

    if options.out is not None:
        check_file(options.out)
    vae, images = options.load()
    rows = images.choose(options.inputs, stratified=True, generator=rv.generator(options.seed))
    x = images.read(rows).to(device=vae.device, dtype=vae.dtype)
    common.check_room(options.out, len(x))
    defenses = [] if options.defense is None else [options.defense]
    victim = list(common.build_victims(vae, defenses).values())[-1]
    place = common.parts_beside(options.out)
    with (
        common.kept(place, vae, common.facts_of(options, x), fresh=options.fresh) as store,
        common.progress("certify", options.quiet) as progress,
    ):
        certificate = certify_in_ranges(
            store,
            victim,
            x,
            tell=common.say,
            progress=progress,
            r=options.r,
            m=options.m,
            displacement=options.displacement,
            norm=options.norm,
            methods=options.method or None,
            center=options.center,
            draws=options.draws,
            generator=rv.generator(options.seed),
        )
        try:
            _write(options, rows, images, certificate, vae)
        except StorageError:
            _show(options, certificate, images)  # the work is not lost with the file
            raise
    _show(options, certificate, images)
    if options.out is not None:
        show(f"written: {options.out}")
    common.check_failures({"certify": certificate.failures}, len(x))


def _show(options: Options, certificate: Any, images: Any) -> None:
    """Print what was certified."""
    from robustvae.cli.printing import floored, show, show_table

    failures = certificate.failures
    radii = sorted(r for i, r in enumerate(certificate.radius.tolist()) if i not in failures)
    share = sum(radius > 0 for radius in radii) / len(radii)
    values = (radii[0], radii[(len(radii) - 1) // 2], sum(radii) / len(radii), radii[-1])
    show_table(
        [(f"{int(share * 100)} %", *map(floored, values))],
        title=f"{Path(options.model).name} on {images.name} ({images.split}), {len(radii)} inputs",
        headings=("share certified", "least", "median", "mean", "greatest"),
        numbers=range(5),
    )
    if not options.quiet:
        question = f"{options.norm}, r = {options.r:g}, m = {options.m:g}"
        show(f"kind: {certificate.kind}, {options.displacement}, {question}")
        if certificate.kind == "probabilistic":
            each, together = certificate.confidence, certificate.confidence_of_all
            show(f"confidence: {each:g} for each input, {together:g} for all of them together")
        if certificate.simultaneous is not None:
            mean = floored(float(certificate.simultaneous.nanmean()))
            show(f"mean of radii that hold for all inputs together: {mean}")
        for name, bound in certificate.by_method.items():
            show(f"mean by {name}: {floored(float(bound.nanmean()))}")
        for assumption in certificate.assumptions:
            show(f"rests on: {assumption}")
        beside = certificate.beside
        if beside is not None:
            questions = [i for i, word in enumerate(beside.status) if word != "not asked"]
            holding = [float(beside.radius[i]) for i in questions if float(beside.radius[i]) > 0]
            mean = floored(sum(holding) / len(holding)) if holding else "none"
            show(
                f"beside, {beside.kind} ({beside.confidence:g}), never mixed in: {len(holding)} of "
                f"{len(questions)} inputs that have no radius above; mean {mean}"
            )
        silent = certificate.status.count("abstain")
        if silent:
            words = [word for word in dict.fromkeys(certificate.suggestions) if word]
            hint = words[0] if words else "more draws, a larger r or a smaller m"
            show(f"abstained on {silent} of {len(radii)} inputs; {hint}")


def _write(options: Options, rows: Any, images: Any, certificate: Any, vae: Any) -> None:
    from robustvae.models.checkpoint import environment, weights_sha256
    from robustvae.records import plain, write_text

    if options.out is None:
        return
    content = {
        "model": options.model,
        "sha256": weights_sha256(vae),
        "data": images.name,
        "split": images.split,
        "seed": options.seed,
        "environment": environment(vae),
        "r": options.r,
        "m": options.m,
        "inputs": rows.tolist(),
        "defense": options.defense,
        **plain(certificate),
    }
    write_text(options.out, json.dumps(content, indent=1, sort_keys=True) + "\n")
