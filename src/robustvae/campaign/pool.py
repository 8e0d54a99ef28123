"""What the driver of a campaign asks of a job, of a pool of workers, and of an executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final, runtime_checkable

from robustvae.audit.tasks import Bundle, Part, Run, State, Task, Words
from robustvae.registry import family_base


class Job(Protocol):
    """Work cut into tasks: an audit, several of them, or calls of a function.

    Attributes:
        key: Of all that decides the parts.
        bears_failure: Whether the job goes on where all inputs of a task fail.
    """

    key: str
    bears_failure: bool

    def tasks(self) -> Sequence[Task]:
        """All tasks, those that others need before these."""

    def compute(self, task: Task, parts: Mapping[str, Part], state: State, say: Words) -> Part:
        """The part of a task, from the parts of those that it needs."""

    def is_valid(self, task: Task, part: Any) -> bool:
        """Whether a stored part has the form of a task's."""

    def needed(self, task: Task, parts: Mapping[str, Part]) -> dict[str, Part]:
        """The parts that a task reads."""

    def singles(self, task: Task) -> Sequence[Task]:
        """A task cut into single inputs; none where it cannot be cut further."""

    def joined(self, task: Task, parts: Sequence[Part]) -> Part:
        """The part of a task from those of its single inputs."""

    def blank(self, task: Task, parts: Mapping[str, Part], reason: str) -> Part | None:
        """The part of a task that cannot be computed, or None where the job fails without it."""

    def bundle(self) -> Bundle:
        """All that another process needs."""


Tell = Callable[[Task, str], None]
"""Called with a task and the step that it begins."""


@final
@dataclass(frozen=True)
class Event:
    """How a task ended.

    Attributes:
        kind: "done", "error" (it raised), or "died" (its worker did).
        task: The task.
        content: The part; the exception; why the worker is gone.
        damaged: Names of stored files that the worker found damaged.
    """

    kind: Literal["done", "error", "died"]
    task: Task
    content: Any
    damaged: tuple[str, ...] = ()


class Pool(Protocol):
    """Workers that have a job."""

    workers: int

    def submit(self, task: Task, parts: Mapping[str, Part]) -> None:
        """Give a task to a worker; at most `workers` tasks are under way."""

    def wait(self) -> list[Event]:
        """Which tasks have ended since, at least one."""

    def close(self) -> None:
        """End the workers."""


@final
@dataclass(frozen=True)
class Outcome:
    """What a job ended with.

    Attributes:
        parts: The part of every task, by its key.
        reused: How many of them were finished before.
        damaged: Names of stored files that were not whole and were computed again.
    """

    parts: Mapping[str, Part]
    reused: int = 0
    damaged: tuple[str, ...] = ()


@family_base("executor")
@runtime_checkable
class Executor(Protocol):
    """Who computes the tasks of a job; the parts are the same for all of them.

    Attributes:
        threads: Of each worker; None for those of this process.
    """

    threads: int | None

    def run(self, job: Any, run: Run) -> Outcome:
        """Compute what is not stored yet, and return all parts."""
        ...
