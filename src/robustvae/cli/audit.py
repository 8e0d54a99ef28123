"""Attack, defend, estimate and certify a model, and write the report."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import (
    DEFAULT_MODEL,
    Data,
    Defense,
    Device,
    Model,
    Out,
    Quiet,
    Seed,
    Split,
)
from robustvae.cli.entry import FAILED
from robustvae.errors import ConfigError, check_choice, single_line

REQUIREMENT = re.compile(r"^\s*(?P<key>.+?)\s*(?P<sign>>=|<=)\s*(?P<bound>[-+0-9.eE]+)\s*$")


@final
@dataclass(frozen=True)
class Options:
    """What the command takes."""

    model: Model = DEFAULT_MODEL
    data: Data = None
    split: Split = "test"
    plan: Annotated[
        str, typer.Option(help="quick, standard, thorough, or a YAML file of your own.")
    ] = "quick"
    defense: Defense = None
    out: Out = Path("out")
    seed: Seed = 0
    device: Device = "cpu"
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the shards an interrupted run left in --out."),
    ] = False
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 1 unless this holds: a check's name, or a key of the summary with a "
            "bound on its mean, such as 'certified>=0.1'. May be repeated."
        ),
    ] = None
    quiet: Quiet = False


def run(options: Options) -> None:
    """Attack, defend, estimate and certify a model, and write the report.

    Writes report.html, record.json and rows.parquet (or rows.jsonl) into --out.

    Examples:

        robustvae audit

        robustvae audit digits-vae --plan standard --out audits/digits-vae

        robustvae audit runs/mine --data mnist --require sandwich --require 'probability>=0.9'
    """
    from robustvae import auditing, report
    from robustvae.cli.printing import console, show
    from robustvae.records import check_folder
    from robustvae.report.terminal import table

    if len(options.defense or ()) > 1:
        raise ConfigError(
            f"an audit takes one --defense, got {len(options.defense or ())}: run it for each"
        )
    stages = auditing.read_plan(options.plan)
    requirements = [_requirement(text, stages) for text in options.require or []]
    vae = common.load_model(options.model, options.device)
    *_, victim = common.build_victims(vae, options.defense).values()
    images = common.load_images(options.model, options.data, options.split)
    check_folder(options.out)
    with common.progress("audit", options.quiet) as progress:
        record = auditing.audit(
            victim,
            images,
            stages,
            seed=options.seed,
            name=Path(options.model).name,
            keep=options.out / ".shards",
            resume=options.resume,
            progress=progress,
        )
    report.write(record, options.out)
    auditing.forget_shards(options.out / ".shards")
    console().print(table(record))
    for sentence in record.proved:
        show(sentence)
    show(f"report: {options.out / 'report.html'}")
    failures = [reason for need in requirements if (reason := _unmet(need, record)) is not None]
    for reason in failures:
        print(f"required, and not so: {single_line(reason)}", file=sys.stderr)
    if failures:
        raise typer.Exit(FAILED)


def _requirement(text: str, plan: Any) -> tuple[str, str | None, float]:
    from robustvae.auditing import check_names, summary_keys

    match = REQUIREMENT.match(text)
    if match is None:
        check_choice("check", text, check_names(plan))
        return text, None, math.nan
    check_choice("key of the summary", match["key"], summary_keys(plan))
    try:
        return match["key"], match["sign"], float(match["bound"])
    except ValueError:
        raise ConfigError(f"--require {text!r} has no number after {match['sign']}") from None


def _unmet(need: tuple[str, str | None, float], record: Any) -> str | None:
    key, sign, bound = need
    if sign is None:
        check = next(check for check in record.checks if check["name"] == key)
        return None if check["passed"] else f"{key}: {check['value']}"
    means = {entry["key"]: float(entry["mean"]) for entry in record.summary}
    if key not in means:
        return f"{key} {sign} {bound:g}, it was not measured"
    holds = means[key] >= bound if sign == ">=" else means[key] <= bound
    return None if holds else f"{key} {sign} {bound:g}, it is {means[key]:.4g}"
