"""A worker process: reads tasks as lines of JSON, writes their parts, and dies with its driver."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from robustvae import errors
from robustvae.audit.tasks import Task
from robustvae.records import SavedState, Store, plain

GONE = 3
"""Exit code of a worker whose driver is gone."""


def main(words: list[str]) -> int:
    """Serve the driver: LOADER FOLDER THREADS and, as JSON, the store's folder, key and resume."""
    loader, folder, threads, settings = words
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver, which ends us
    # what a model prints must not get between the messages: it goes to standard error
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lines = _watched(sys.stdin)
    import torch

    torch.set_num_threads(int(threads))
    try:
        job = open_job(loader, Path(folder))
    except Exception as error:
        _send(channel, {"kind": "fault", **described(error)})
        return 1
    _send(channel, {"kind": "ready"})
    store = Store(**json.loads(settings))
    while True:
        line = lines()
        if line is None:
            return 0
        message = json.loads(line)
        task = Task(**{**message["task"], "needs": tuple(message["task"]["needs"])})
        _send(channel, compute(job, task, message["parts"], store, channel))


def open_job(loader: str, folder: Path) -> Any:
    """The job of a bundle that lies in a folder."""
    module, _, function = loader.partition(":")
    return getattr(importlib.import_module(module), function)(folder)


def compute(
    job: Any, task: Task, parts: Mapping[str, Any], store: Store, channel: BinaryIO | None = None
) -> dict[str, Any]:
    """The message that tells how a task ended."""

    def say(words: str) -> None:
        if channel is not None:
            _send(channel, {"kind": "step", "words": words})

    store.damaged.clear()
    try:
        part = job.compute(task, parts, SavedState(store, task.key), say)
    except Exception as error:  # the driver tells what is the input's from what is the job's
        return {"kind": "error", **described(error), "damaged": store.damaged}
    memory = peak_memory()
    return {"kind": "done", "part": plain(part), "memory": memory, "damaged": store.damaged}


def described(error: BaseException) -> dict[str, str]:
    """An exception as a message."""
    return {"error": type(error).__name__, "text": " ".join(str(error).split())[:1000]}


def restored(message: Mapping[str, str]) -> Exception:
    """The exception of a message: one of ours as it was, any other as a `ModelError`.

    Examples:
        >>> from robustvae.campaign.worker import restored
        >>> restored({"error": "ShapeError", "text": "x must be (2, 2)"})
        ShapeError('x must be (2, 2)')
    """
    kind = getattr(errors, message["error"], None)
    if isinstance(kind, type) and issubclass(kind, errors.RobustVAEError):
        return kind(message["text"])
    return errors.ModelError(f"{message['error']}: {message['text']}")


def peak_memory() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _send(channel: BinaryIO, message: Mapping[str, Any]) -> None:
    try:
        channel.write(json.dumps(message).encode() + b"\n")
        channel.flush()
    except BrokenPipeError:  # the driver died before this thread's watch on it could tell
        os._exit(GONE)


def _watched(stream: TextIO) -> Any:
    """A function that gives the next line; the process ends at once when the driver is gone."""
    import queue

    lines: queue.Queue[str | None] = queue.Queue()
    is_busy = threading.Event()

    def watch() -> None:
        for line in stream:
            is_busy.set()
            lines.put(line)
        if is_busy.is_set():  # at work for nobody: what is saved is saved
            os._exit(GONE)
        lines.put(None)

    threading.Thread(target=watch, daemon=True).start()

    def following() -> str | None:
        is_busy.clear()
        return lines.get()

    return following


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
