"""Certify how far inputs may be pushed: radii that no attack can beat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer

from robustvae.cli import common
from robustvae.cli.common import (
    DEFAULT_MODEL,
    Data,
    Device,
    Displacement,
    Model,
    Norm,
    OutFile,
    Quantile,
    Quiet,
    Seed,
    Split,
)


@final
@dataclass(frozen=True)
class Options:
    """What the command takes."""

    model: Model = DEFAULT_MODEL
    data: Data = None
    split: Split = "test"
    inputs: Annotated[int, typer.Option(min=1, help="Images, balanced over the classes.")] = 100
    r: Annotated[float, typer.Option(help="Output distance tolerated, l2 in pixel units.")] = 1.0
    m: Quantile = 0.5
    displacement: Displacement = "centered"
    norm: Norm = "l2"
    method: Annotated[
        list[str] | None,
        typer.Option(help="A bound to take instead of the guaranteed ones; may be repeated."),
    ] = None
    out: OutFile = None
    seed: Seed = 0
    device: Device = "cpu"
    quiet: Quiet = False


def run(options: Options) -> None:
    """Certify how far inputs may be pushed: radii that no attack can beat.

    A certificate of radius R says: no perturbation of norm below R brings the probability that the
    output stays within r down to m or below. Radius 0 means that nothing could be proved. Models
    that nothing constrains, and hierarchies, have certificates by the method neyman_pearson.

    Examples:

        robustvae certify

        robustvae certify digits-vae --method neyman_pearson --inputs 10

        robustvae certify digits-lipschitz-vae --r 1.5 --m 0.9 --displacement paired --out
        radii.json
    """
    import robustvae as rv
    from robustvae.cli.printing import floored, show, show_table
    from robustvae.records import check_folder, plain, write_text

    if options.out is not None:
        check_folder(options.out.parent)
    vae = common.load_model(options.model, options.device)
    images = common.load_images(options.model, options.data, options.split)
    rows = images.choose(options.inputs, stratified=True, generator=rv.generator(options.seed))
    x = images.read(rows).to(device=vae.device, dtype=vae.dtype)
    common.check_fit(vae, images)
    certificate = rv.certify(
        vae,
        x,
        r=options.r,
        m=options.m,
        displacement=options.displacement,
        norm=options.norm,
        methods=options.method or None,
        generator=rv.generator(options.seed),
    )
    if options.out is not None:
        content = {
            "model": options.model,
            "data": images.name,
            "r": options.r,
            "m": options.m,
            "inputs": rows.tolist(),
            **plain(certificate),
        }
        write_text(options.out, json.dumps(content, indent=1, sort_keys=True) + "\n")
    radii = sorted(certificate.radius.tolist())
    share = sum(radius > 0 for radius in radii) / len(radii)
    values = (radii[0], radii[(len(radii) - 1) // 2], sum(radii) / len(radii), radii[-1])
    show_table(
        [(f"{int(share * 100)} %", *map(floored, values))],
        title=f"{Path(options.model).name} on {images.name} ({images.split}), {len(x)} inputs",
        headings=("share certified", "least", "median", "mean", "greatest"),
        numbers=range(5),
    )
    if not options.quiet:
        question = f"{options.norm}, r = {options.r:g}, m = {options.m:g}"
        show(f"kind: {certificate.kind}, {options.displacement}, {question}")
        for name, bound in certificate.by_method.items():
            show(f"mean by {name}: {floored(float(bound.mean()))}")
        for assumption in certificate.assumptions:
            show(f"rests on: {assumption}")
        if not any(radii):
            show("nothing could be proved: abstain; other methods: --method neyman_pearson")
    if options.out is not None:
        show(f"written: {options.out}")
