"""Measure a campaign: overhead, workers beside one process, a worker's memory, a victim's stages.

    python scripts/measure_campaign.py time --model digits-vae --plan quick
    python scripts/measure_campaign.py time --model mnist-conv28 --inputs 8  # quiet, two cores
    python scripts/measure_campaign.py memory
    python scripts/measure_campaign.py stages --defense posterior-mode:steps=20 --inputs 2

CPU seconds stand beside wall seconds: on a busy machine only the first say something.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from typing import Any

import torch

import robustvae as rv
from robustvae.audit import Run
from robustvae.audit.auditor import Auditor
from robustvae.audit.job import AuditJob
from robustvae.audit.plan import read_plan
from robustvae.audit.protocol import choose, settle
from robustvae.campaign.executors.processes import Processes, _Start, _Workers, unpacked_bundle
from robustvae.records import Store


def cpu() -> float:
    """CPU seconds of this process and of children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


EXECUTORS = (
    ("serial", False),
    ("serial", True),
    ("processes:workers=1", True),
    ("processes:workers=2", True),
)


def measure_time(model: str, base: str, inputs: int, executors: Any = EXECUTORS) -> None:
    """One audit by several executors."""
    plan = {"base": base, "inputs": inputs, "shard": max(1, min(10, inputs // 4))}
    vae = rv.load(model)
    images = rv.data.load(rv.load(model).config.get("data") or model.split("-")[0], split="test")
    rv.audit(vae, images, plan="smoke", run=Run(progress=lambda *_: None))  # warms up
    for executor, keeps in executors:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(executor=executor, keep=folder if keeps else None, progress=lambda *_: None)
            begin, spent = time.monotonic(), cpu()
            rv.audit(vae, images, plan=plan, run=run)
            wall, spent = time.monotonic() - begin, cpu() - spent
        words = "kept" if keeps else "not kept"
        print(
            f"{model}, {base}, {inputs} inputs, {executor}, {words}: "
            f"{wall:.1f} s, {spent:.1f} CPU s",
            flush=True,
        )


def measure_stages(model: str, base: str, inputs: int, defense: str, protocol: str | None) -> None:
    """CPU seconds of each stage of one victim's audit, its inputs in one range."""
    vae = rv.load(model)
    images = rv.data.load(rv.load(model).config.get("data") or model.split("-")[0], split="test")
    rv.audit(vae, images, plan="smoke", run=Run(progress=lambda *_: None))  # warms up
    begin, stage = cpu(), "before the first stage"

    def tell(done: int, total: int, words: str) -> None:
        nonlocal begin, stage
        print(f"{cpu() - begin:8.1f}  {stage}", flush=True)
        begin, stage = cpu(), words

    victim = rv.Victim(vae, defense) if defense else rv.Victim(vae)
    plan = {"base": base, "inputs": inputs, "shard": inputs}
    named = {defense or "undefended": victim}
    rv.audit(named, images, plan=plan, protocol=protocol, run=Run(progress=tell))
    tell(0, 0, "")


def measure_memory() -> None:
    """Peak memory of a worker that computes one range of an audit of many digits."""
    vae = rv.load("digits-vae")
    for count in (100, 1000, 10_000):
        x = torch.rand(count, 1, 8, 8, generator=rv.generator(0))
        images = rv.data.from_tensor(x)
        plan = read_plan({"base": "smoke", "inputs": count, "shard": 10, "r": 1.0})
        plan, question = settle(plan, None, {}, images)
        inputs = choose(images, plan, None, 0)
        job = AuditJob(Auditor({"victim": rv.Victim(vae)}, inputs, plan, question, 0), {})
        tasks = job.tasks()
        attacks = tasks[0]
        measures = next(task for task in tasks if task.needs == (attacks.key,) and task.steps > 1)
        bundle, store = job.bundle(), Store(None, job.key)
        with unpacked_bundle(bundle) as folder:
            start = _Start(bundle.loader, folder, Processes().threads, store)
            pool = _Workers(1, start, lambda task, words: None)
            parts: dict[str, Any] = {}
            for task in (attacks, measures):
                pool.submit(task, parts)
                (event,) = pool.wait()
                parts = {task.key: event.content}
            print(f"{count} digits: {pool.memory / 2**20:.0f} MB at most in a worker", flush=True)
            pool.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("time", "memory", "stages"))
    parser.add_argument("--model", default="digits-vae")
    parser.add_argument("--plan", default="quick")
    parser.add_argument("--inputs", type=int, default=8, help="of the audit, ten in a range")
    parser.add_argument("--workers-only", action="store_true", help="one worker beside two")
    parser.add_argument("--defense", default="", help="of the victim whose stages are measured")
    parser.add_argument("--protocol", help="of that audit")
    options = parser.parse_args()
    if options.what == "time":
        chosen = EXECUTORS[2:] if options.workers_only else EXECUTORS
        measure_time(options.model, options.plan, options.inputs, chosen)
    elif options.what == "stages":
        measure_stages(
            options.model, options.plan, options.inputs, options.defense, options.protocol
        )
    else:
        measure_memory()
