"""Kill audits and trainings at random moments, go on, and compare with runs that nothing killed.

Drivers and workers get SIGKILL, at moments counted in the seconds that they have computed. Every
run must end with the record, or the weights, of a run that was left alone: nothing lost, nothing
doubled. Prints a line for each run and exits with 1 where anything differs.

    python scripts/kills.py --audit 50 --training 35 --workers 15 --seed 0
    python scripts/kills.py --audit 0 --training 0 --workers 0 --ray 10  # with the extra cluster
    python scripts/kills.py --audit 0 --training 0 --workers 0 --ray-training 10

A training among workers is a call of a campaign (`Calls`), whose folder it goes on in.

Drivers are forked from a process that has torch already, so that a start costs next to nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import robustvae as rv
from robustvae.audit import Run
from robustvae.campaign import Calls
from robustvae.campaign.executors.processes import sweep_scratch
from robustvae.models import checkpoint
from robustvae.records import states
from robustvae.records.files import is_alive
from robustvae.registry import build
from robustvae.training import run as training_run

TICKS = os.sysconf("SC_CLK_TCK")


def audit(executor: str, keep: Path | None, out: Path) -> None:
    """An audit of a few digits, its record without times into a file."""
    states.SAVE_EVERY = 0.2  # within attacks too, which take less than a second
    plan = {"base": "smoke", "inputs": 8, "shard": 2, "without": ["diagnosis_passed"]}
    run = Run(executor=executor, keep=keep, progress=lambda *_: None, notice=lambda _: None)
    images = rv.data.load("digits", split="test")
    record = rv.audit(rv.load("digits-vae"), images, plan=plan, question={"r": 1.0}, run=run)
    out.write_text(json.dumps({**json.loads(record.to_json()), "timing": None}))


def train(executor: str, keep: Path | None, out: Path) -> None:
    """A training of a few epochs, the hash of its weights into a file."""
    training_run.SAVE_EVERY = 0.2  # within epochs too, which take a second
    vae = rv.models.create("vae", architecture="conv8", latent=2)
    images = rv.data.load("digits")
    generator = rv.generator(0)
    rv.fit(vae, rv.objectives.ELBO(), images, epochs=4, generator=generator, out=keep)
    out.write_text(str(checkpoint.weights_sha256(vae)))


def weights_after(folder: str | None) -> str:
    """The hash of the weights that a training ends with: a call that workers make."""
    place = Path(folder) if folder else Path(tempfile.mkdtemp())
    train("serial", place / "run", place / "hash")
    return (place / "hash").read_text()


def train_remotely(executor: str, keep: Path | None, out: Path) -> None:
    """Two trainings as a job of two workers, the hashes of their weights into a file."""
    names = ["", ""] if keep is None else [str(keep / name) for name in "ab"]
    for name in filter(None, names):
        Path(name).mkdir(parents=True, exist_ok=True)
    job = Calls("kills:weights_after", [{"folder": name or None} for name in names])
    run = Run(progress=lambda *_: None, notice=lambda _: None)
    parts = build("executor", executor).run(job, run).parts
    out.write_text(json.dumps([part.get("value", part) for part in parts.values()]))


def forked(call: Callable[[], None]) -> int:
    """The process id of a child that makes the call."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        call()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def seconds_of(pid: int) -> float:
    """What a process has computed; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def workers_of(driver: int) -> list[int]:
    """Process ids of the workers below a driver: its own, and the actors of its Ray."""
    below: dict[int, list[int]] = {}
    words: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words[int(entry.name)] = (entry / "cmdline").read_text()
            except (OSError, IndexError, ValueError):
                continue
            below.setdefault(parent, []).append(int(entry.name))
    pids, places = [], [driver]
    while places:
        children = below.get(places.pop(), [])
        pids += [pid for pid in children if any(word in words[pid] for word in WORKERS)]
        places += children
    return pids


def daemons() -> list[int]:
    """Process ids of Ray's daemons whose folder is of a driver that is gone."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            match = re.search(r"/robustvae-(\d+)-", (entry / "cmdline").read_text())
        except (OSError, ValueError):
            continue
        if entry.name.isdigit() and match and not is_alive(int(match[1])):
            pids.append(int(entry.name))
    return pids


WORKERS = ("robustvae.campaign.worker", "ray::_Worker")
"""In the command line of a process that computes tasks."""


def trial(
    call: Callable[[str, Path | None, Path], None],
    executor: str,
    kills: int,
    source: random.Random,
    longest: float,
) -> tuple[int, int, int]:
    """Kills, runs, and runs that ended otherwise than the one that nothing killed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        assert os.waitpid(forked(lambda: call("serial", None, folder / "reference")), 0)[1] == 0
        wanted = (folder / "reference").read_text()
        count = runs = differing = 0
        while count < kills:
            runs += 1
            keep, out = folder / f"keep-{runs}", folder / f"out-{runs}"
            local, status = 0, None
            pid = forked(lambda keep=keep, out=out: call(executor, keep, out))
            target, limit = pid, source.uniform(0.05, longest)
            while status is None:
                done, code = os.waitpid(pid, os.WNOHANG)
                if done:
                    status = code
                    break
                time.sleep(0.02)
                if executor != "serial" and target == pid and source.random() < 0.6:
                    target = source.choice(workers_of(pid) or [pid])
                if local >= 5 or seconds_of(target) < limit:
                    continue
                os.kill(target, signal.SIGKILL)
                count, local = count + 1, local + 1
                if target == pid:
                    os.waitpid(pid, 0)
                    pid = forked(lambda keep=keep, out=out: call(executor, keep, out))
                target, limit = pid, source.uniform(0.05, longest)
            equal = status == 0 and out.read_text() == wanted
            differing += not equal
            word = "equal" if equal else "DIFFERENT"
            print(f"{call.__name__}, {executor}: run {runs}, {local} kills, {word}", flush=True)
    return count, runs, differing


def main() -> int:
    """Make the trials that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audit", type=int, default=50, help="kills of audits in one process")
    parser.add_argument("--training", type=int, default=35, help="kills of trainings")
    parser.add_argument("--workers", type=int, default=15, help="kills among two workers")
    parser.add_argument("--ray", type=int, default=0, help="kills among two workers of Ray")
    parser.add_argument("--worker-training", type=int, default=0, help="of trainings by workers")
    parser.add_argument("--ray-training", type=int, default=0, help="of trainings by Ray's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source, begin, bad = random.Random(options.seed), time.monotonic(), 0
    for call, executor, kills, longest in (
        (train, "serial", options.training, 1.0),
        (audit, "serial", options.audit, 1.5),
        (audit, "processes:workers=2", options.workers, 4.0),
        (audit, "ray:workers=2", options.ray, 6.0),
        (train_remotely, "processes:workers=2", options.worker_training, 8.0),
        (train_remotely, "ray:workers=2", options.ray_training, 8.0),
    ):
        if kills:
            count, runs, differing = trial(call, executor, kills, source, longest)
            bad += differing
            words = {"what": call.__name__, "executor": executor, "kills": count, "runs": runs}
            print(json.dumps({**words, "differing": differing}), flush=True)
    time.sleep(2.0)  # the daemons of a killed Ray notice it within a second
    count = sweep_scratch(Path(tempfile.gettempdir()))
    print(f"swept at the end: {count} folders; processes of killed runs: {len(daemons())}")
    print(f"{time.monotonic() - begin:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
