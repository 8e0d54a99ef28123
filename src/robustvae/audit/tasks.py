"""What an audit is cut into, so that it can be computed anywhere and gone on with at any time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import torch

from robustvae.display import Progress

Part = dict[str, Any]
"""The result of a task, in JSON's own types."""

_BYTES = 4  # of a value in float32
_NUMBERS = 2000  # bytes of the numbers beside an attacked input, a generous guess
_SPARE = 8 * 2**20  # bytes of the report, with its pictures

Words = Callable[[str], None]


@final
@dataclass(frozen=True)
class Run:
    """How an audit is run, which decides no number of it.

    Args:
        name: What to call the model in the record.
        source: What `rv.load` takes to load the model again: for whoever verifies the record, and
            for workers, where the model is not one of the library's own.
        loading: What `rv.load` takes beside the source: `weights`, `pixels`, `fit_on`. Workers are
            given the content of the weights, not their place.
        keep: A folder for what is finished, so that nothing is lost when the run is stopped.
        resume: Go on from what the same audit left in `keep` (the same weights, inputs, plan and
            seed); None does so where the weights can be identified, False starts anew.
        progress: Called with (steps done, steps in all, what is under way); None prints a line
            with the remaining time now and then, once an audit takes long.
        executor: Who computes: "serial", "processes:workers=2", "ray:address=auto", or an object
            of that family. The numbers are the same for all of them.
        notice: Told in a sentence what a user should know: that a run goes on, or that a worker
            died; None prints it on standard error.
        announce: Told beforehand in a sentence what minutes and memory an audit takes; None prints
            it on standard error where that is more than a moment.

    Examples:
        >>> from robustvae.audit import Run
        >>> Run(name="mine").executor
        'serial'
    """

    name: str | None = None
    source: str | None = None
    keep: str | Path | None = None
    resume: bool | None = None
    progress: Progress | None = None
    executor: Any = "serial"
    notice: Words | None = None
    announce: Words | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)


def space_needed(tasks: Sequence[Task], inputs: int, values: int) -> int:
    """Bytes that the parts of an audit and its result take at most, about.

    Each step of a task may store its inputs' attacked versions, in JSON, a third longer than they
    are; the result holds them once more. Beside each stand some thousand bytes of numbers.

    Args:
        tasks: Of the audit.
        inputs: How many inputs a task has.
        values: Of one input.

    Examples:
        >>> from robustvae.audit.tasks import Task, space_needed
        >>> space_needed([Task("0", steps=10)], inputs=16, values=784) // 10**6
        10
    """
    each = 4 * values * _BYTES // 3 + _NUMBERS
    return _SPARE + 2 * each * inputs * sum(task.steps for task in tasks)


@final
@dataclass(frozen=True)
class Task:
    """One piece of a job: some inputs and a stage.

    Attributes:
        key: Its name, which no other task of the job has.
        fields: What it is about, in JSON's own types.
        needs: Keys of the tasks whose parts it reads.
        steps: How many steps it has, for the progress.
    """

    key: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    steps: int = 1


@final
@dataclass(frozen=True)
class Bundle:
    """All that another process needs to compute a job's tasks.

    Attributes:
        loader: "package.module:function", which makes the job of the folder that holds the files.
        files: All of each file, by its name.
    """

    loader: str
    files: Mapping[str, bytes]


class State(Protocol):
    """What a task has finished of itself; kept from time to time."""

    def get(self, step: str) -> Any:
        """The content of a finished step, or None."""

    def put(self, step: str, content: Any) -> None:
        """Take the content of a finished step, in JSON's own types."""


@final
class Memory:
    """A `State` that keeps nothing beyond the process."""

    def __init__(self) -> None:
        self.steps: dict[str, Any] = {}

    def get(self, step: str) -> Any:
        """The content of a finished step, or None."""
        return self.steps.get(step)

    def put(self, step: str, content: Any) -> None:
        """Take the content of a finished step."""
        self.steps[step] = content


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Within: torch computes with so many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
