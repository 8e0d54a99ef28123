"""The executor of several processes on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from robustvae.audit.tasks import Bundle, Part, Run, Task
from robustvae.campaign.driver import run_tasks
from robustvae.campaign.pool import Event, Job, Outcome, Tell
from robustvae.campaign.worker import restored
from robustvae.errors import ConfigError, RangeError, check_count
from robustvae.records import Store
from robustvae.records.files import is_alive
from robustvae.registry import register

_EACH, _LEAST = 8, 16  # more workers for a processor only wait for it, and fill the memory


@register("executor", "processes")
@final
@dataclass(frozen=True)
class Processes:
    """Computes in processes of this machine, each started anew and with its own threads.

    A process that dies is replaced and its task given to another. The processes end with their
    driver, however it ends.

    Args:
        workers: How many; at most 8 for each processor, and 16 on any machine.
        threads: Of each of them; more than one makes the last digits depend on the number.

    Raises:
        RangeError: Below 1, or more workers than that.

    Examples:
        >>> from robustvae.registry import build
        >>> build("executor", "processes:workers=4").threads
        1
    """

    workers: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_count(self.workers, "workers")
        check_count(self.threads, "threads")
        processors = os.cpu_count() or 1
        most = max(_EACH * processors, _LEAST)
        if self.workers > most:
            raise RangeError(
                f"workers must be at most {most} on a machine of {processors} processors, got "
                f"{self.workers}: each holds the model and half a gigabyte of torch"
            )

    def run(self, job: Job, run: Run) -> Outcome:
        """Compute what is not stored yet, and return all parts."""
        with contextlib.ExitStack() as stack:

            def opened(store: Store, tell: Tell) -> _Workers:
                bundle = job.bundle()
                folder = stack.enter_context(unpacked_bundle(bundle))
                count = min(self.workers, len(job.tasks()))
                return _Workers(count, _Start(bundle.loader, folder, self.threads, store), tell)

            return run_tasks(job, run, opened)


_SCRATCH = re.compile(r"robustvae-(\d+)-\w{8}")


def scratch_folder() -> Path:
    """A new folder that only this user can read, swept by a later run should this one be killed."""
    sweep_scratch(Path(tempfile.gettempdir()))
    return Path(tempfile.mkdtemp(prefix=f"robustvae-{os.getpid()}-"))


def sweep_scratch(top: Path) -> int:
    """Remove the folders of processes that are gone, and return how many; other users' stay.

    Args:
        top: Where folders are made.
    """
    count = 0
    for folder in top.glob("robustvae-*"):
        name = _SCRATCH.fullmatch(folder.name)
        if name is None or is_alive(int(name[1])):
            continue
        with contextlib.suppress(OSError):
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder)
                count += 1
    return count


@contextlib.contextmanager
def unpacked_bundle(bundle: Bundle) -> Iterator[Path]:
    """Within: a folder of a bundle's files, which only this user can read."""
    folder = scratch_folder()
    try:
        for name, content in bundle.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@final
@dataclass(frozen=True)
class _Start:
    """How a worker is started."""

    loader: str
    folder: Path
    threads: int
    store: Store

    def command(self) -> list[str]:
        folder = None if self.store.folder is None else str(self.store.folder.absolute())
        settings = {"folder": folder, "key": self.store.key, "resume": self.store.resume}
        words = [self.loader, str(self.folder), str(self.threads), json.dumps(settings)]
        return [sys.executable, "-m", "robustvae.campaign.worker", *words]

    def environment(self) -> dict[str, str]:
        threads = str(self.threads)
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }


@final
class _Process:
    """One worker and the thread that reads its messages."""

    def __init__(self, start: _Start, inbox: queue.Queue[tuple[_Process, Any]]) -> None:
        self.process = subprocess.Popen(
            start.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=start.environment(),
        )
        self.task: Task | None = None
        self.is_ready = False
        threading.Thread(target=self._read, args=(inbox,), daemon=True).start()

    def _read(self, inbox: queue.Queue[tuple[_Process, Any]]) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # a kill may cut a line short
            for line in self.process.stdout:
                inbox.put((self, json.loads(line)))
        code = self.process.wait()
        words = f"signal {-code}" if code < 0 else f"exit code {code}"
        inbox.put((self, {"kind": "gone", "words": words}))

    def give(self, task: Task, parts: Mapping[str, Part]) -> None:
        self.task = task
        assert self.process.stdin is not None
        message = {"task": dataclasses.asdict(task), "parts": dict(parts)}
        with contextlib.suppress(OSError):  # dead already: the reader tells
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@final
class _Workers:
    """A pool of processes, each replaced when it dies."""

    def __init__(self, workers: int, start: _Start, tell: Tell) -> None:
        self.workers, self.start, self.tell = workers, start, tell
        self.inbox: queue.Queue[tuple[_Process, Any]] = queue.Queue()
        self.processes = [_Process(start, self.inbox) for _ in range(workers)]
        self.memory: int = 0
        self.failures = 0

    def submit(self, task: Task, parts: Mapping[str, Part]) -> None:
        # one that is ready first; one that still starts reads the task when it is
        idle = [process for process in self.processes if process.task is None]
        min(idle, key=lambda process: not process.is_ready).give(task, parts)

    def wait(self) -> list[Event]:
        while True:
            process, message = self.inbox.get()
            if process not in self.processes:  # of one that was replaced
                continue
            task, kind = process.task, message["kind"]
            if kind == "ready":
                process.is_ready = True
            elif kind == "fault":
                raise restored(message)
            elif kind == "step" and task is not None:
                self.tell(task, message["words"])
            elif kind == "gone":
                if not process.is_ready:
                    self.failures += 1
                    if self.failures > 3 * self.workers:  # it is the machine, not the task
                        raise ConfigError(
                            f"workers end before they are ready ({message['words']}): "
                            "use the executor serial, which shows why"
                        )
                process.end()
                place = self.processes.index(process)
                self.processes[place] = _Process(self.start, self.inbox)
                if task is not None:
                    return [Event("died", task, message["words"])]
            elif task is not None:
                process.task = None
                self.failures = 0
                damaged = tuple(message["damaged"])
                if kind == "error":
                    return [Event("error", task, restored(message), damaged)]
                self.memory = max(self.memory, message.get("memory") or 0)
                return [Event("done", task, message["part"], damaged)]

    def close(self) -> None:
        for process in self.processes:
            process.end()
