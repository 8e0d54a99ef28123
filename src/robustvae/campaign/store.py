"""Parts on disk, each under a name made of what it is, and with its own hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from robustvae.audit.tasks import Task
from robustvae.errors import StorageError
from robustvae.records import plain, write_text

SCHEMA = 1
"""Of the files; one of another number is left alone."""

SAVE_EVERY = 60.0
"""Seconds between two saves of what a task has finished of itself."""

_FILE = re.compile(r"[0-9a-f]{32}\.(?:part|state)\.json")


@final
class Store:
    """Finished parts of a job, and what unfinished tasks have done so far.

    A file's name follows from job and task, so that parts of other jobs lie beside them. A file
    that is missing, damaged, changed or of another schema is computed again; `damaged` names those
    that were there and not whole.

    Args:
        folder: Where they lie; None keeps nothing.
        key: Of the job: all that decides its numbers.
        resume: Whether what lies there is read.
    """

    def __init__(self, folder: str | Path | None, key: str, resume: bool = True) -> None:
        self.folder = None if folder is None else Path(folder)
        self.key = key
        self.resume = resume
        self.damaged: list[str] = []

    def path(self, task: Task, kind: str = "part") -> Path | None:
        """Where the part or the state of a task lies."""
        if self.folder is None:
            return None
        text = f"{SCHEMA}/{self.key}/{task.key}"
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.{kind}.json"

    def read(self, task: Task, kind: str = "part") -> Any:
        """The content of a whole file of a task, or None."""
        path = self.path(task, kind)
        if not self.resume or path is None or not path.is_file():
            return None
        try:
            file = json.loads(path.read_text(encoding="utf-8"))
            content = file["content"]
            is_whole = (file["schema"], file["job"], file["task"], file["sha256"]) == (
                *(SCHEMA, self.key, task.key),
                _digest(content),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
            is_whole = False
        if not is_whole:
            self.damaged.append(path.name)
            return None
        return content

    def write(self, task: Task, content: Any, kind: str = "part") -> None:
        """Keep the part or the state of a task; a part replaces the state.

        Raises:
            StorageError: The file cannot be written.
        """
        path = self.path(task, kind)
        if path is None:
            return
        content = plain(content)
        file = {"schema": SCHEMA, "job": self.key, "task": task.key, "sha256": _digest(content)}
        write_text(path, json.dumps({**file, "content": content}))
        if kind == "part":
            self.discard_state(task)

    def discard_state(self, task: Task) -> None:
        """Remove what a task kept of itself."""
        state = self.path(task, "state")
        if state is not None:
            with contextlib.suppress(OSError):
                state.unlink(missing_ok=True)


@final
class SavedState:
    """What a task has finished of itself, written to a store when some time has gone by.

    Args:
        store: Where to.
        task: The task.
        every: Seconds between two saves.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        store: Store,
        task: Task,
        every: float = SAVE_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.task, self.every, self.clock = store, task, every, clock
        content = store.read(task, "state")
        self.steps: dict[str, Any] = content if isinstance(content, dict) else {}
        self.last = clock()

    def get(self, step: str) -> Any:
        """The content of a finished step, or None."""
        return self.steps.get(step)

    def put(self, step: str, content: Any) -> None:
        """Take the content of a finished step."""
        self.steps[step] = content
        now = self.clock()
        if now - self.last >= self.every:
            self.last = now
            with contextlib.suppress(StorageError):  # it is optional: the work goes on without
                self.store.write(self.task, self.steps, "state")


def forget_parts(folder: str | Path) -> None:
    """Remove the parts that jobs kept in `folder`, and the folder if nothing else is in it.

    Examples:
        >>> import tempfile, pathlib
        >>> from robustvae.campaign import forget_parts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mine = pathlib.Path(folder) / "mine.json"
        ...     _ = mine.write_text("{}")
        ...     forget_parts(folder)
        ...     mine.exists()
        True
    """
    folder = Path(folder)
    for path in folder.glob("*.json"):
        if _FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
