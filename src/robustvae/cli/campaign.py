"""Audit several models behind several defenses by several protocols, and compare them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Device, Executor, Fresh, Out, Quiet, RayAddress, Workers
from robustvae.cli.entry import FAILED
from robustvae.errors import ConfigError, RobustVAEError


@final
@dataclass(frozen=True)
class Options:
    """What the command takes."""

    plan: Annotated[
        Path, typer.Argument(help="YAML: models, defenses, protocols, plan, data, split, seed.")
    ]
    out: Out = Path("campaign")
    workers: Workers = None
    ray: RayAddress = None
    executor: Executor = None
    fresh: Fresh = False
    device: Device = "cpu"
    quiet: Quiet = False


def run(options: Options) -> None:
    """Audit several models behind several defenses by several protocols, and compare them.

    Each audit is written into a folder of its own below --out; one that is there already is not
    made again, and one that was stopped goes on, unless --fresh is given. A folder that holds an
    audit of another question or other weights is refused. A model that cannot be audited costs the
    others nothing. The exit code is 1 where the evidence of an audit is not sound, 2 where one
    could not be made.

    Examples:

        robustvae campaign study.yaml --workers 2 --out study   # needs that file

        robustvae compare study/*   # needs those audits
    """
    from robustvae.campaign import read_campaign
    from robustvae.cli.printing import show
    from robustvae.records import check_folder
    from robustvae.report.compare import compare

    campaign = read_campaign(options.plan)
    _check_data(campaign)
    questions = [(one, campaign.question(one)) for one in campaign.audits()]
    executor = common.executor(options.workers, options.ray, options.executor)
    check_folder(options.out)
    records, failures, stops = [], [], []
    for one, question in questions:
        try:
            record = _record(options, campaign, one, question, executor)
        except RobustVAEError as error:  # of this model: the others are audited all the same
            show(f"{one.name}: {error}", stderr=True)
            stops.append(one.name)
            continue
        records.append(record)
        show(f"{one.name}: {record.verdict.first}")
        if not record.verdict.passed:
            failures.append(one.name)
    if len(records) > 1 and len(campaign.protocols) < 2:
        table = compare(records)
        common.show_comparison(table)
    if stops:
        raise ConfigError(
            f"{len(stops)} of {len(questions)} audits could not be made ({', '.join(stops)}): "
            "mend what is said above and run the campaign again, the others are kept"
        )
    show(f"compare them again: robustvae compare {options.out}/*")
    if failures:
        raise typer.Exit(FAILED)


def _check_data(campaign: Any) -> None:
    """Raise where the data set is none, before the first audit begins."""
    from robustvae.data.folder import SPLITS
    from robustvae.errors import check_choice

    if campaign.data is None:
        check_choice("split", campaign.split, SPLITS)
    else:
        model = next(campaign.audits()).model
        common.load_images(model.model, campaign.data, campaign.split, model.pixels)


def _record(
    options: Options, campaign: Any, one: Any, question: dict[str, Any], executor: Any
) -> Any:
    """The record of one audit: that in its folder, or a new one."""
    import json

    from robustvae import report
    from robustvae.audit import Run, audit
    from robustvae.campaign.plan import QUESTION, is_finished
    from robustvae.cli.printing import show
    from robustvae.models.checkpoint import weights_sha256
    from robustvae.records import Lock, check_owned, finish_switch, forget_parts, write_set
    from robustvae.report.files import FILES, contents_of

    folder, model = options.out / one.name, one.model
    looks: dict[str, Any] = {
        "weights": None if model.weights is None else Path(model.weights),
        "pixels": model.pixels,
        "data": campaign.data,
    }
    with Lock(folder):
        finish_switch(folder)
        vae = common.load_model(model.model, options.device, **looks)
        if not options.fresh and is_finished(folder, question, weights_sha256(vae)):
            show(f"{one.name}: it is there already", stderr=True)
            return report.read(folder)
        check_owned(folder, (*FILES, QUESTION))
        images = common.load_images(model.model, campaign.data, campaign.split, model.pixels)
        common.check_fit(vae, images)
        victims = common.build_victims(vae, list(campaign.defenses))
        with common.progress(one.name, options.quiet) as progress:
            record = audit(
                victims,
                images,
                campaign.plan,
                protocol=one.protocol,
                minutes=campaign.minutes,
                seed=campaign.seed,
                run=Run(
                    name=model.name or Path(model.model).name,
                    source=model.model,
                    loading=common.loading(model.model, **looks),
                    keep=folder / common.PARTS,
                    resume=False if options.fresh else None,
                    progress=progress or (lambda done, total, what: None),
                    executor=executor,
                    notice=lambda words: show(words, stderr=True),
                ),
            )
        # in one set with what was asked, so that no kill leaves it beside another audit
        contents, stale = contents_of(record)
        text = json.dumps(question, indent=1, sort_keys=True) + "\n"
        write_set(folder, {**contents, QUESTION: text.encode()}, remove=stale)
        forget_parts(folder / common.PARTS)
    return record
