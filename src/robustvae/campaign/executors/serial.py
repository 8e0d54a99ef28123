"""The executor that computes in this process, one task after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from robustvae.audit.tasks import Part, Run, Task, torch_threads
from robustvae.campaign.driver import run_tasks
from robustvae.campaign.pool import Event, Job, Outcome, Tell
from robustvae.errors import check_count
from robustvae.records import SavedState, Store
from robustvae.registry import register


@register("executor", "serial")
@final
@dataclass(frozen=True)
class Serial:
    """Computes in this process, one task after the other.

    Args:
        threads: With which torch computes; None for as many as it has.

    Raises:
        RangeError: Below 1.

    Examples:
        >>> from robustvae.registry import build
        >>> build("executor", "serial").threads is None
        True
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.threads is not None:
            check_count(self.threads, "threads")

    def run(self, job: Job, run: Run) -> Outcome:
        """Compute what is not stored yet, and return all parts."""
        with torch_threads(self.threads):
            return run_tasks(job, run, lambda store, tell: _Here(job, store, tell))


@final
class _Here:
    """A pool of one worker: this process."""

    workers = 1

    def __init__(self, job: Job, store: Store, tell: Tell) -> None:
        self.job, self.store, self.tell = job, store, tell
        self.queue: list[tuple[Task, Mapping[str, Part]]] = []

    def submit(self, task: Task, parts: Mapping[str, Part]) -> None:
        self.queue.append((task, parts))

    def wait(self) -> list[Event]:
        task, parts = self.queue.pop(0)
        state = SavedState(self.store, task.key)
        try:
            part = self.job.compute(task, parts, state, lambda words: self.tell(task, words))
        except Exception as error:  # the driver tells what is the input's from what is the job's
            return [Event("error", task, error)]
        return [Event("done", task, part)]

    def close(self) -> None:
        self.queue.clear()
