"""Simulate a campaign of many workers with measured task times: where does the driver saturate?

A discrete simulation: tasks of two stages for each range of inputs (attacks, then measures), and
workers that die at a rate. One driver spends time on each part (read, check, hash, write) and on
each task that it hands out. `measure` runs a small audit and writes the CPU seconds of its
tasks, of its driver for a part, and of a worker's start; `--times` draws the tasks of the
simulation from that file. How often a worker dies is what the machines make of it: `--mtbf`.

    python scripts/simulate_campaign.py measure --model mnist-conv28 --times times.json
    python scripts/simulate_campaign.py --times times.json --scale 10
    python scripts/simulate_campaign.py --attacks 40 --measures 60 --driver 0.02 --mtbf 86400
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

STAGES = ("attacks", "measures")


@final
@dataclass(frozen=True)
class Faults:
    """How often a worker dies, in seconds of work, and what its successor takes to start."""

    mtbf: float
    start: float


def simulate(
    workers: int,
    ranges: int,
    length: Callable[[random.Random, int], float],
    driver: float,
    faults: Faults,
    seed: int,
) -> tuple[float, float, float, int]:
    """Seconds of the campaign, of its tasks in all, share the driver is busy, and lost tasks."""
    source = random.Random(seed)
    events: list[tuple[float, int, int, int, bool]] = []
    ready = [(number, 0) for number in range(ranges)][::-1]
    idle, free_at, busy, lost, done, counter, now = workers, 0.0, 0.0, 0, 0, 0, 0.0
    work = 0.0
    while done < 2 * ranges:
        while ready and idle:
            number, stage = ready.pop()
            idle -= 1
            free_at = max(free_at, now) + driver / 2  # handing out
            busy += driver / 2
            seconds = length(source, stage)
            death = source.expovariate(1 / faults.mtbf)
            counter += 1
            end = free_at + (death + faults.start if death < seconds else seconds)
            work += 0.0 if death < seconds else seconds
            heapq.heappush(events, (end, counter, number, stage, death < seconds))
        now, _, number, stage, has_died = heapq.heappop(events)
        idle += 1
        if has_died:
            lost += 1
            ready.append((number, stage))
            continue
        free_at = max(free_at, now) + driver / 2  # taking the part in
        busy += driver / 2
        now = max(now, free_at - driver / 2)
        done += 1
        if stage == 0:
            ready.append((number, 1))
    total = max(now, free_at)
    return total, work, busy / total, lost


def measure(model: str) -> dict[str, Any]:
    """CPU seconds of the tasks of a small audit, of its driver for a part, and of a new worker."""
    import robustvae as rv
    from robustvae.audit import Run
    from robustvae.audit.job import AuditJob
    from robustvae.records import Store

    vae = rv.load(model)
    images = rv.data.load(model.split("-")[0], split="test")
    plan = {"base": "quick", "inputs": 16, "shard": 4, "without": ["diagnosis_passed"]}
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    compute, parts = AuditJob.compute, []

    def timed(self: Any, task: Any, needed: Any, state: Any, say: Any) -> Any:
        begin = time.process_time()
        part = compute(self, task, needed, state, say)
        if task.fields["stage"] in times:
            times[task.fields["stage"]].append(time.process_time() - begin)
            parts.append((task.key, part))
        return part

    run = Run(source=model, progress=lambda *_: None, announce=lambda _: None)
    AuditJob.compute = timed  # type: ignore[method-assign]
    rv.audit(vae, images, plan=plan, run=run)
    AuditJob.compute = compute  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        store, begin = Store(folder, "key"), time.process_time()
        for key, part in parts:
            store.write(key, part)
            json.dumps(store.read(key))  # as it is handed to the worker of the next stage
        driver = (time.process_time() - begin) / len(parts)
    before = children()
    code = f"import torch, robustvae as rv; rv.load({model!r}); import robustvae.audit.job"
    subprocess.run([sys.executable, "-c", code], check=True)
    return {
        "model": model,
        "tasks": times,
        "driver": driver,
        "start": children() - before,
        "part_bytes": statistics.mean(len(json.dumps(part)) for _, part in parts),
    }


def children() -> float:
    """CPU seconds of processes that this one has started and that have ended."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def main() -> None:
    """Measure, or print a table over numbers of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("measure", "simulate"), default="simulate")
    parser.add_argument("--model", default="mnist-conv28", help="of the audit that is measured")
    parser.add_argument("--times", type=Path, help="file of measured times")
    parser.add_argument("--scale", type=float, default=1.0, help="times the measured tasks")
    parser.add_argument("--attacks", type=float, default=40.0, help="seconds of a range's attacks")
    parser.add_argument("--measures", type=float, default=60.0, help="and of its measures")
    parser.add_argument("--driver", type=float, default=0.02, help="driver seconds for a task")
    parser.add_argument("--mtbf", type=float, default=86400.0, help="seconds between two deaths")
    parser.add_argument("--ranges", type=int, default=0, help="of inputs; 0: ten a worker")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "measure":
        times = measure(options.model)
        text = json.dumps(times, indent=1)
        print(text)
        if options.times is not None:
            options.times.write_text(text + "\n")
        return
    means = (options.attacks, options.measures)
    driver, start = options.driver, 0.0
    measured: dict[str, list[float]] | None = None
    if options.times is not None:
        content = json.loads(options.times.read_text())
        measured, driver, start = content["tasks"], content["driver"], content["start"]

    def length(source: random.Random, stage: int) -> float:
        if measured is None:
            return means[stage] * source.lognormvariate(0.0, 0.2)
        return options.scale * source.choice(measured[STAGES[stage]])

    print("| workers | tasks | hours | efficiency | driver busy | tasks lost |")
    print("|---:|---:|---:|---:|---:|---:|")
    for workers in (1, 2, 10, 100, 1000, 2000, 5000, 10_000):
        ranges = options.ranges or 10 * workers
        faults = Faults(options.mtbf, start)
        total, work, busy, lost = simulate(workers, ranges, length, driver, faults, options.seed)
        print(
            f"| {workers:,} | {2 * ranges:,} | {total / 3600:.2f} | {work / total / workers:.3f} | "
            f"{busy:.3f} | {lost} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
