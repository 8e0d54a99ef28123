"""What an attack is to do, and how outcomes and columns of some inputs are put into the batch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from robustvae import registry
from robustvae.attacks.attack import AttackResult
from robustvae.audit.tasks import Part
from robustvae.defenses import Victim
from robustvae.errors import ConfigError, RobustVAEError
from robustvae.records import plain


class Parts(Protocol):
    """The parts of an audit's tasks."""

    def of(self, name: str, stage: str) -> list[Part]:
        """Those of one victim and stage, in the order of the inputs."""


def checked_columns(measure: Any, values: Mapping[str, Any], count: int) -> dict[str, list[Any]]:
    """The values of a measure's columns, each a list of one for every input."""
    ids = {column.id for column in measure.columns}
    if set(values) != ids:
        odd = sorted(set(values) ^ ids)
        raise ConfigError(
            f"{type(measure).__name__} must return its declared columns, got {', '.join(odd)}"
        )
    columns: dict[str, list[Any]] = {}
    for key, column in values.items():
        listing = plain(list(column) if isinstance(column, tuple) else column)
        if len(listing) != count:
            raise ConfigError(
                f"{key} must hold one value for each of {count} inputs, got {len(listing)}"
            )
        columns[key] = listing
    return columns


def reason_of(error: BaseException) -> str:
    """Why something could not be done: our own errors say it, others with their kind."""
    return str(error) if isinstance(error, RobustVAEError) else f"{type(error).__name__}: {error}"


def omission(stage: str, victim: str, reason: str) -> dict[str, str]:
    """An entry of what was left out, its reason in one line of at most 400 characters."""
    return {"stage": stage, "victim": victim, "reason": " ".join(reason.split())[:400]}


def put_rows(result: AttackResult, rows: Sequence[int], part: AttackResult) -> AttackResult:
    """A result with some rows replaced."""
    index = torch.tensor(rows, device=result.x_adv.device)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(result):
        value, new = getattr(result, field.name), getattr(part, field.name)
        if isinstance(value, Tensor):
            fields[field.name] = value.index_copy(0, index, new.to(value))
        else:
            words = list(value)
            for row, word in zip(rows, new, strict=True):
                words[row] = word
            fields[field.name] = tuple(words)
    return AttackResult(**fields)


def spec_or_none(victim: Victim) -> dict[str, Any] | None:
    """The spec of a victim's defense; None where no spec can say it."""
    with contextlib.suppress(RobustVAEError):
        spec: dict[str, Any] = registry.spec_of("defense", victim.defense)
        return spec
    return None
