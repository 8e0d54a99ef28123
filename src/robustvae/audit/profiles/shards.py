"""A profile's measurements cut into ranges of inputs, each kept as soon as it is finished."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae import registry
from robustvae.audit.store import tensor_sha256
from robustvae.audit.tasks import Bundle, Part, Run, State, Task, Words
from robustvae.data import Images
from robustvae.defenses import Victim
from robustvae.errors import UnsupportedError
from robustvae.loops import packed, unpacked
from robustvae.models import checkpoint
from robustvae.records import plain, saving

SCHEMA = 2
"""Of the parts; a part of another number is computed again."""

SIZE = 50  # inputs of a part: what a killed run loses, and how often the time is looked at

Values = dict[str, Tensor]
"""Columns of some inputs, each (n, ...)."""

Compute = Callable[[slice], tuple[Values, list[str]]]
"""Values of a range of inputs, and sentences on how they were measured."""


@final
class ShardJob:
    """One measurement of several inputs as tasks, each a range of them.

    Args:
        key: Of all that decides the values.
        label: What is measured.
        ranges: Of the inputs.
        compute: The measurement.
        blank: Values for an input that fails alone; None where the measurement fails without it.
    """

    bears_failure = False  # an input may fail; where all do, it is the model or the question

    def __init__(
        self,
        key: str,
        label: str,
        ranges: Sequence[slice],
        compute: Compute,
        blank: Callable[[slice], Values] | None = None,
    ) -> None:
        self.key, self.label, self.ranges = key, label, ranges
        self.measurement, self.blank_values = compute, blank

    def tasks(self) -> list[Task]:
        """A task for each range."""
        return [self._task(part.start, part.stop) for part in self.ranges]

    def _task(self, begin: int, end: int) -> Task:
        return Task(f"{self.label}/{begin}-{end}", {"begin": begin, "end": end})

    def compute(self, task: Task, parts: Mapping[str, Part], state: State, say: Words) -> Part:
        """The values of a range."""
        say(f"inputs {task.fields['begin'] + 1} to {task.fields['end']}")
        with saving(state, "values"):
            values, notes = self.measurement(slice(task.fields["begin"], task.fields["end"]))
        return {"values": {key: packed(x) for key, x in values.items()}, "notes": notes}

    def is_valid(self, task: Task, part: Any) -> bool:
        """Whether a stored part has the form of a range's."""
        if not isinstance(part, dict) or set(part) != {"values", "notes"}:
            return False
        count = task.fields["end"] - task.fields["begin"]
        try:
            columns = {key: unpacked(value) for key, value in part["values"].items()}
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):
            return False
        return bool(columns) and all(x.ndim and len(x) == count for x in columns.values())

    def singles(self, task: Task) -> list[Task]:
        """The single inputs of a range; none where it is one."""
        begin, end = task.fields["begin"], task.fields["end"]
        return [self._task(i, i + 1) for i in range(begin, end)] if end - begin > 1 else []

    def needed(self, task: Task, parts: Mapping[str, Part]) -> dict[str, Part]:
        """Nothing: ranges do not read each other's values."""
        return {}

    def joined(self, task: Task, parts: Sequence[Part]) -> Part:
        """The part of a range from those of its single inputs."""
        values = stacked([part["values"] for part in parts])
        notes = [words for part in parts for words in part["notes"]]
        return {"values": {key: packed(x) for key, x in values.items()}, "notes": notes}

    def blank(self, task: Task, parts: Mapping[str, Part], reason: str) -> Part | None:
        """Values of an input that cannot be measured, where the measurement has some."""
        if self.blank_values is None:
            return None
        values = self.blank_values(slice(task.fields["begin"], task.fields["end"]))
        return {"values": {key: packed(x) for key, x in values.items()}, "notes": [reason]}

    def bundle(self) -> Bundle:
        """Not for workers: scores and heads may be the user's own objects.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("a profile's own measurements are computed by the executor serial")


def stacked(parts: Sequence[Mapping[str, Any]]) -> Values:
    """The packed columns of several ranges as one."""
    return {key: torch.cat([unpacked(part[key]) for part in parts]) for key in parts[0]}


@final
@dataclass
class Shards:
    """Where a profile's finished measurements lie, and what they are known again by.

    Attributes:
        run: Folder and whether what lies there is read.
        key: Of all that decides the numbers; None keeps nothing.
        size: Inputs of a range.
        reused: How many ranges were finished before.
        damaged: Names of stored files that were not whole and were computed again.
    """

    run: Run = field(default_factory=lambda: Run(notice=lambda words: None))
    key: str | None = None
    size: int = SIZE
    reused: int = 0
    damaged: list[str] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    identities: dict[int, tuple[Victim, str]] = field(default_factory=dict)

    def identity(self, victim: Victim) -> str:
        """What tells a victim from others; computed once for each, as weights may be large."""
        if id(victim) not in self.identities:  # the victim is kept too: its id is its own then
            self.identities[id(victim)] = victim, identity(victim)
        return self.identities[id(victim)][1]

    def measured(
        self,
        label: str,
        count: int,
        compute: Compute,
        blank: Callable[[slice], Values] | None = None,
    ) -> tuple[Values, list[str]]:
        """A measurement of `count` inputs, of which finished ranges are read from the folder.

        Args:
            label: What is measured; with the key it decides every value.
            count: Of the inputs.
            compute: The measurement of a range.
            blank: Values for an input that fails alone.

        Returns:
            Columns (count, ...), and sentences on how they were measured.

        Raises:
            Exception: What every input of the first range raises.
        """
        ranges = [slice(i, min(i + self.size, count)) for i in range(0, count, self.size)]
        job = ShardJob(self.key or "", label, ranges, compute, blank)
        keep = None if self.key is None else self.run.keep
        run = dataclasses.replace(
            self.run, keep=keep, progress=lambda *_: None, notice=lambda words: None
        )
        outcome = registry.build("executor", "serial").run(job, run)
        if label not in self.labels:  # a run may measure the same twice itself
            if outcome.reused and not self.reused and self.run.notice is not None:
                self.run.notice(f"the profile goes on with what this run left in {keep}")
            self.reused += outcome.reused
        self.labels.add(label)
        self.damaged += outcome.damaged
        parts = [outcome.parts[task.key] for task in job.tasks()]
        notes = [words for part in parts for words in part["notes"]]
        return stacked([part["values"] for part in parts]), notes


def key_of(
    header: Mapping[str, Any], images: Images, settings: Mapping[str, Any] | None
) -> str | None:
    """What a profile's measurements are known again by; None for settings that no spec can say.

    The values of the inputs are in the label of each measurement, and need not all be read here.
    """
    if settings is None:
        return None
    data = [images.name, images.split, len(images), tensor_sha256(images.y)]
    content = {"schema": SCHEMA, "use": dict(settings), "everything": data, **header}
    return hashlib.sha256(json.dumps(plain(content), sort_keys=True).encode()).hexdigest()


def identity(victim: Victim) -> str:
    """What tells a victim from others: weights, defense, and the weights of its head."""
    head = victim.classifier
    tensors = head.state_dict() if isinstance(head, nn.Module) else {}
    words = [checkpoint.weights_sha256(victim.vae), repr(victim.defense)]
    words += [f"{key} {tensor_sha256(value)}" for key, value in tensors.items()]
    words += [] if head is None else [type(head).__name__]
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]
