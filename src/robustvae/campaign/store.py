"""What a task has finished of itself, kept beside the parts of its job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, final

from robustvae.audit.tasks import Task
from robustvae.errors import StorageError
from robustvae.records import Store

SAVE_EVERY = 60.0
"""Seconds between two saves of what a task has finished of itself."""


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
        content = store.read(task.key, "state")
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
                self.store.write(self.task.key, self.steps, "state")
