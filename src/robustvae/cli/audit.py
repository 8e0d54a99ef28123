"""Attack, defend, estimate and certify a model, and write the report."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import (
    Defense,
    Executor,
    Fresh,
    Logger,
    Out,
    Quiet,
    RayAddress,
    Resume,
    Seed,
    Tolerance,
    Workers,
)
from robustvae.cli.entry import FAILED
from robustvae.errors import check_choice, single_line


@final
@dataclass(frozen=True)
class Options(common.ModelAndData):
    """What the command takes."""

    plan: Annotated[
        str | None,
        typer.Option(help="quick (the default), standard, thorough, or a YAML file of your own."),
    ] = None
    protocol: Annotated[
        str | None,
        typer.Option(help="A question with its suite and inputs (see `robustvae list protocol`)."),
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(
            help="An audit for a use (see `robustvae list profile`), with fields where wanted: "
            "anomaly:fpr=0.01; or a YAML file of your own."
        ),
    ] = None
    anomalous: Annotated[
        str | None,
        typer.Option(
            help="Data set or folder of anomalies for --profile anomaly; --data holds the normal "
            "inputs then."
        ),
    ] = None
    defense: Defense = None
    r: Tolerance = None
    m: Annotated[
        float | None, typer.Option("--m", help="Probability asked for, in (0, 1); 0.5 by default.")
    ] = None
    norm: Annotated[
        str | None, typer.Option(help="Norm of the margin: l2 (the default) or linf.")
    ] = None
    displacement: Annotated[
        str | None, typer.Option(help="centered (the default), paired or full.")
    ] = None
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Cut the plan to about this many minutes.")
    ] = None
    out: Out = Path("out")
    seed: Seed = 0
    workers: Workers = None
    ray: RayAddress = None
    executor: Executor = None
    resume: Resume = False
    fresh: Fresh = False
    require: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with 1 unless this holds: a check's id, or a key of the summary with a "
            "bound on its mean, such as 'certified_deterministic>=0.1'. May be repeated."
        ),
    ] = None
    name: Annotated[
        str | None, typer.Option(help="What to call the model; its file's or zoo's name if not.")
    ] = None
    logger: Logger = None
    quiet: Quiet = False


def run(options: Options) -> None:
    """Attack, defend, estimate and certify a model, and write the report.

    Writes report.html, record.json, adversarials.safetensors and rows.parquet (or rows.jsonl) into
    --out. Each --defense is one more victim, beside the undefended model. The exit code is 1 where
    a check says that the evidence is not sound or the model not useful. A run that was stopped
    goes on from what it left in --out, unless --fresh is given.

    Examples:

        robustvae audit

        robustvae audit digits-vae --protocol digits-l2-v1 --out audits/digits-vae --workers 2

        robustvae audit digits-vae --defense posterior-mode --r 1.0 --minutes 1

        robustvae audit my_model.py:build --weights w.pt --data photos/ --pixels -1,1   # needs them

        robustvae audit mnist-conv28 --profile anomaly --anomalous fashion_mnist   # needs data

        robustvae audit digits-vae --plan smoke --require inside_ball --require 'damage<=5'
    """
    from robustvae import report
    from robustvae.audit import Run, audit
    from robustvae.cli.printing import console, show
    from robustvae.loggers import log_record
    from robustvae.records import Lock, check_folder, check_owned, forget_parts
    from robustvae.records.requirements import outcomes
    from robustvae.registry import build
    from robustvae.report.files import FILES
    from robustvae.report.terminal import table

    executor = common.executor(options.workers, options.ray, options.executor)
    resume = common.resumption(options.resume, options.fresh)
    logger = None if options.logger is None else build("logger", options.logger)
    stages = _stages(options.plan, options.profile)
    for requirement in options.require or []:
        _check_requirement(requirement, stages)
    vae, images = options.load()
    victims = common.build_victims(vae, options.defense)
    if options.anomalous is not None:
        images = common.with_anomalies(images, options.anomalous, options.split)
    check_folder(options.out)
    with Lock(options.out):
        check_owned(options.out, FILES)
        question = {
            "r": options.r,
            "m": options.m,
            "norm": options.norm,
            "displacement": options.displacement,
        }
        with common.progress("audit", options.quiet) as progress:
            record = audit(
                victims,
                images,
                options.plan,
                protocol=options.protocol,
                profile=options.profile,
                question={key: value for key, value in question.items() if value is not None},
                minutes=options.minutes,
                seed=options.seed,
                run=Run(
                    name=options.name or Path(options.model).name,
                    source=options.model,
                    loading=common.loading(
                        options.model,
                        weights=options.weights,
                        pixels=options.pixels,
                        data=options.data,
                    ),
                    keep=options.out / common.PARTS,
                    resume=resume,
                    progress=progress or (lambda done, total, what: None),
                    executor=executor,
                    notice=lambda words: show(words, stderr=True),
                    announce=(lambda words: None) if options.quiet else show_cost,
                ),
            )
        record = record.model_copy(
            update={"requirements": options.require or [], "command": command_of(options)}
        )
        report.write(record, options.out)
        forget_parts(options.out / common.PARTS)
        if logger is not None:
            log_record(logger, record, folder=options.out)
    console().print(table(record))
    for sentence in record.proved:
        show(sentence)
    show(f"report: {options.out / 'report.html'}")
    failures = [reason for _, reason in outcomes(record) if reason is not None]
    for reason in failures:
        print(f"required, and not so: {single_line(reason)}", file=sys.stderr)
    if not record.verdict.passed:
        print(f"the audit failed: {single_line(record.verdict.first)}", file=sys.stderr)
    if failures or not record.verdict.passed:
        raise typer.Exit(FAILED)


def show_cost(words: str) -> None:
    """Print what an audit will cost, on standard error."""
    from robustvae.cli.printing import show

    show(f"audit: {words}", stderr=True)


def _stages(plan: str | None, profile: str | None) -> Any:
    from robustvae.audit import read_plan
    from robustvae.audit.protocol import read_profile, with_profile

    if profile is not None:
        return with_profile(plan, read_profile(profile))
    return read_plan(plan or "quick")


def _check_requirement(text: str, plan: Any) -> None:
    """Raise where a requirement names neither a check nor a number of the plan."""
    from robustvae.audit import check_names, summary_keys
    from robustvae.records.requirements import parse_requirement

    key, sign, _ = parse_requirement(text)
    if sign is None:
        check_choice("check", key, check_names(plan))
    else:
        check_choice("key of the summary", key.partition(" / ")[0], summary_keys(plan))


# Options that decide no number of the record.
_WITHOUT_EFFECT = ("out", "workers", "ray", "executor", "resume", "fresh", "logger", "quiet")


def command_of(options: Options) -> str:
    """The command line that makes the same record again.

    Examples:
        >>> from robustvae.cli.audit import Options, command_of
        >>> command_of(Options(model="digits-vae", r=0.86, defense=["input-noise:stddev=0.25"]))
        'robustvae audit digits-vae --defense input-noise:stddev=0.25 --r 0.86'
    """
    words = ["robustvae", "audit", options.model]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name in ("model", *_WITHOUT_EFFECT) or value == field.default:
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        else:
            for part in value if isinstance(value, list) else [value]:
                words += [flag, f"{part:g}" if isinstance(part, float) else str(part)]
    return shlex.join(words)
