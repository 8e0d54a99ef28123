"""Gives tasks to workers in the order of their needs, keeps their parts, and bears with faults."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable
from typing import final

from robustvae.arguments import checked
from robustvae.audit.tasks import Part, Run, Task
from robustvae.campaign.pool import Event, Job, Outcome, Pool, Tell
from robustvae.display import Lines
from robustvae.errors import ModelError, single_line
from robustvae.records import Store, plain, reason_of

RETRIES = 3
"""How often a task whose worker died is given to another before it is cut into single inputs."""


@checked()
def run_tasks(job: Job, run: Run, open_pool: Callable[[Store, Tell], Pool]) -> Outcome:
    """Compute the parts of a job that its store does not hold, and return all of them.

    A task that raises, or whose worker dies again and again, is cut into single inputs; an input
    that fails alone is reported and costs no other its numbers. So are the inputs of a later range
    which all fail, as where it has one input: the first range has shown that the job can be done.

    Args:
        job: The work.
        run: Folder, progress and notices.
        open_pool: Makes the workers, once there is something to compute.

    Raises:
        RobustVAEError: What every input of a first range raises.
        ModelError: A task that cannot be done without, and whose worker dies of it.
    """
    driver = _Driver(job, run)
    if driver.unfinished:
        pool = open_pool(driver.store, driver.step)
        try:
            driver.work(pool)
        finally:
            pool.close()
    parts = {key: driver.parts[key] for key in driver.tasks}
    return Outcome(parts, driver.reused, tuple(driver.store.damaged))


@final
class _Driver:
    """Which tasks are finished, ready, under way or waiting."""

    def __init__(self, job: Job, run: Run) -> None:
        self.job, self.run = job, run
        self.tell = run.progress or Lines()
        self.notice = run.notice or _print
        self.store = Store(run.keep, job.key, run.resume is not False)
        self.tasks = {task.key: task for task in job.tasks()}
        self.order = {key: number for number, key in enumerate(self.tasks)}
        self.parts: dict[str, Part] = {}
        self.parents: dict[str, Task] = {}
        self.families: dict[str, list[Task]] = {}
        self.failures: dict[str, BaseException] = {}
        self.deaths: dict[str, int] = {}
        self.progress: dict[str, int] = {}
        self.done = 0
        self.total = sum(task.steps for task in self.tasks.values())
        for task in self.tasks.values():
            part = self.store.read(task.key)
            if part is not None and job.is_valid(task, part):
                self.parts[task.key] = part
                self.advance(task.key, task.steps)
            elif part is not None:
                path = self.store.path(task.key)
                self.store.damaged.append("" if path is None else path.name)
        for name in self.store.damaged:
            self.notice(f"{name} was damaged and is computed again")
        self.reused = len(self.parts)
        self.waiting: dict[str, set[str]] = {}
        self.readers: dict[str, list[str]] = {}
        self.ready: list[tuple[int, str]] = []
        for key, task in self.tasks.items():
            if key not in self.parts:
                self.waiting[key] = {need for need in task.needs if need not in self.parts}
                for need in self.waiting[key]:
                    self.readers.setdefault(need, []).append(key)
                if not self.waiting[key]:
                    heapq.heappush(self.ready, (self.order[key], key))
        self.unfinished = len(self.tasks) - len(self.parts)
        if self.reused:
            self.notice(
                f"going on with {self.reused} of {len(self.tasks)} parts that this run left in "
                f"{self.store.folder}"
            )
        # counted only: whoever computes them reads them, and tells of damaged ones
        states = [self.store.path(key, "state") for key in self.waiting if self.store.resume]
        count = sum(path is not None and path.is_file() for path in states)
        if count:
            self.notice(f"going on within {count} parts that it had begun")

    def work(self, pool: Pool) -> None:
        """Until every task has its part."""
        under_way = 0
        while self.unfinished:
            while self.ready and under_way < pool.workers:
                _, key = heapq.heappop(self.ready)
                task = self.tasks.get(key) or self.single(key)
                under_way += 1
                pool.submit(task, self.job.needed(task, self.parts))
            for event in pool.wait():
                under_way -= 1
                self.store.damaged += event.damaged
                if event.kind == "done":
                    self.finish(event.task, plain(event.content))
                elif event.kind == "died":
                    self.bury(event)
                else:
                    self.cut(event.task, event.content)

    def single(self, key: str) -> Task:
        """The single input of a task that was cut."""
        parent = self.parents[key]
        return next(task for task in self.families[parent.key] if task.key == key)

    def step(self, task: Task, words: str) -> None:
        """Say what a worker begins."""
        key = task.key
        self.tell(self.done, self.total, words)
        if key in self.tasks:
            limit = self.tasks[key].steps - 1  # the last step is finished with the task
            self.advance(key, min(self.progress.get(key, 0) + 1, limit))

    def advance(self, key: str, steps: int) -> None:
        """Count the steps of a task."""
        self.done += steps - self.progress.get(key, 0)
        self.progress[key] = steps

    def finish(self, task: Task, part: Part) -> None:
        """Keep a part, and free those that waited for it."""
        if task.key in self.parents:
            self.parts[task.key] = part
            parent = self.parents[task.key]
            family = self.families[parent.key]
            if all(one.key in self.parts for one in family):
                failed = [one for one in family if one.key in self.failures]
                bears = self.job.bears_failure or _is_later(parent)
                if len(failed) == len(family) and not bears:
                    raise self.failures[failed[0].key]
                self.finish(
                    parent, self.job.joined(parent, [self.parts[one.key] for one in family])
                )
            return
        family = self.families.get(task.key, [])
        has_failed = any(one.key in self.failures for one in family)
        # a call that failed is made again by the next run
        if not (has_failed and self.job.bears_failure):
            self.store.keep(task.key, part, self.notice)
        self.parts[task.key] = part
        self.advance(task.key, task.steps)
        self.unfinished -= 1
        for reader in self.readers.pop(task.key, ()):
            self.waiting[reader].discard(task.key)
            if not self.waiting[reader]:
                heapq.heappush(self.ready, (self.order[reader], reader))

    def bury(self, event: Event) -> None:
        """Give a task to another worker, or cut it where it has killed several."""
        task = event.task
        count = self.deaths[task.key] = self.deaths.get(task.key, 0) + 1
        reason = f"a worker died on {task.key}: {event.content}"
        if count <= RETRIES:
            self.notice(f"{reason}; it is computed again ({count} of {RETRIES})")
            self.advance(task.key, 0)
            heapq.heappush(self.ready, (self.place(task), task.key))
            return
        self.cut(task, ModelError(f"{reason}, {count} times"))

    def cut(self, task: Task, error: BaseException) -> None:
        """Try each input of a task alone; report one that fails alone."""
        singles = () if task.key in self.parents else self.job.singles(task)
        self.store.discard_state(task.key)
        if singles:
            self.families[task.key] = list(singles)
            for one in singles:
                self.parents[one.key] = task
                heapq.heappush(self.ready, (self.place(one), one.key))
            return
        if task.key not in self.parents and not _is_later(task):
            raise error
        reason = single_line(reason_of(error), 300)
        part = self.job.blank(task, self.job.needed(task, self.parts), reason)
        if part is None:
            raise error
        self.failures[task.key] = error
        self.finish(task, plain(part))

    def place(self, task: Task) -> int:
        """Where a task stands in the order."""
        return self.order[self.parents.get(task.key, task).key]


def _is_later(task: Task) -> bool:
    """Whether a task is about inputs after the first range of them."""
    return bool(task.fields.get("begin", 0))


def _print(words: str) -> None:
    print(single_line(words), file=sys.stderr, flush=True)
