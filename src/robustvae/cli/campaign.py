"""Audit several models behind several defenses by several protocols, and compare them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import typer

from robustvae.cli import common
from robustvae.cli.common import Device, Executor, Fresh, Out, Quiet, RayAddress, Workers
from robustvae.cli.entry import FAILED


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
    made again, and one that was stopped goes on, unless --fresh is given. The exit code is 1 where
    the evidence of an audit is not sound.

    Examples:

        robustvae campaign study.yaml --workers 2 --out study   # needs that file

        robustvae compare study/*   # needs those audits
    """
    from robustvae import report
    from robustvae.audit import Run, audit
    from robustvae.campaign import read_campaign
    from robustvae.cli.printing import show
    from robustvae.records import Lock, check_folder, check_owned, finish_switch, forget_parts
    from robustvae.report.compare import compare
    from robustvae.report.files import FILES

    campaign = read_campaign(options.plan)
    executor = common.executor(options.workers, options.ray, options.executor)
    check_folder(options.out)
    records, failures = [], []
    for one in campaign.audits():
        folder = options.out / one.name
        with Lock(folder):
            finish_switch(folder)
            if not options.fresh and (folder / "record.json").is_file():
                show(f"{one.name}: it is there already", stderr=True)
                record = report.read(folder)
            else:
                check_owned(folder, FILES)
                model = one.model
                looks: dict[str, Any] = {
                    "weights": None if model.weights is None else Path(model.weights),
                    "pixels": model.pixels,
                    "data": campaign.data,
                }
                vae = common.load_model(model.model, options.device, **looks)
                images = common.load_images(model.model, campaign.data, campaign.split)
                common.check_fit(vae, images)
                with common.progress(one.name, options.quiet) as progress:
                    record = audit(
                        common.build_victims(vae, list(campaign.defenses)),
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
                report.write(record, folder)
                forget_parts(folder / common.PARTS)
            records.append(record)
            show(f"{one.name}: {record.verdict.first}")
            if not record.verdict.passed:
                failures.append(one.name)
    if len(records) > 1 and len(campaign.protocols) < 2:
        table = compare(records)
        common.show_comparison(table)
    show(f"compare them again: robustvae compare {options.out}/*")
    if failures:
        raise typer.Exit(FAILED)
