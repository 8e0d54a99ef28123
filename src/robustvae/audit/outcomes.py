"""What an attack is to do, and how outcomes and columns of some inputs are put into the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

from robustvae import registry
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


def omission(stage: str, victim: str, reason: str) -> dict[str, str]:
    """An entry of what was left out, its reason in one line of at most 400 characters."""
    return {"stage": stage, "victim": victim, "reason": " ".join(reason.split())[:400]}


def spec_or_none(victim: Victim) -> dict[str, Any] | None:
    """The spec of a victim's defense; None where no spec can say it."""
    with contextlib.suppress(RobustVAEError):
        spec: dict[str, Any] = registry.spec_of("defense", victim.defense)
        return spec
    return None
