"""What a check of an audit is given, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

from robustvae.registry import family_base

Subject = Literal["evidence", "usefulness", "robustness", "note"]
"""What the failure of a check says something about; a "note" changes no verdict."""


@final
@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        passed: Whether what it asks for holds; None where it could not be judged.
        value: What was measured, in a few words.

    Examples:
        >>> from robustvae.records import Outcome
        >>> Outcome(True, "0 of 40 violated").passed
        True
    """

    passed: bool | None
    value: str


@final
@dataclass(frozen=True)
class Case:
    """One victim's evidence, as checks see it: plain values, never changed by a check.

    Attributes:
        victim: Name of the victim.
        rows: Its rows, one for each input and attack.
        probes: What was measured beside the rows, by name.
        question: The question, as `record.question` holds it.
        defended: Whether the victim reads its code by a defense.
        random: Whether its output depends on a generator.

    Examples:
        >>> from robustvae.records import Case
        >>> case = Case("plain", [{"attack": "a", "damage": 1.0}], {}, {"r": 1.0})
        >>> case.numbers("damage")
        [1.0]
    """

    victim: str
    rows: Sequence[Mapping[str, Any]]
    probes: Mapping[str, Any]
    question: Mapping[str, Any]
    defended: bool = False
    random: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def numbers(self, column: str, rows: Sequence[Mapping[str, Any]] | None = None) -> list[float]:
        """The measured values of a column; "inf" as infinity."""
        values = (row.get(column) for row in (self.rows if rows is None else rows))
        return [float(value) for value in values if value is not None]

    def finite(self, column: str, rows: Sequence[Mapping[str, Any]] | None = None) -> list[float]:
        """The finite values of a column."""
        return [value for value in self.numbers(column, rows) if math.isfinite(value)]

    def inputs(self) -> list[Mapping[str, Any]]:
        """One row for each input: columns that do not depend on the attack are the same in all."""
        rows: dict[Any, Mapping[str, Any]] = {}
        for row in self.rows:
            rows.setdefault(row.get("input"), row)
        return list(rows.values())

    def balls(self) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
        """The rows of each ball, under its norm and radius in words."""
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.rows:
            if row.get("norm") is not None:
                groups.setdefault(f"{row['norm']} {float(row['radius']):g}", []).append(row)
        yield from groups.items()

    def roles(self, *roles: str) -> list[Mapping[str, Any]]:
        """The rows of attacks with one of some roles, such as "plan" or "transfer"."""
        return [row for row in self.rows if row.get("role") in roles]

    def best(
        self, column: str, rows: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[Any, float]:
        """The greatest value of a column for each input."""
        greatest: dict[Any, float] = {}
        for row in self.rows if rows is None else rows:
            value = row.get(column)
            if value is not None:
                name = row.get("input")
                greatest[name] = max(greatest.get(name, -math.inf), float(value))
        return greatest


@family_base("check")
@runtime_checkable
class Check(Protocol):
    """Judges one victim's rows and probes and never edits them.

    The first line of its docstring is the plain sentence that the report shows; `meaning` says
    what a failure means. Its name in the registry is its id, in snake_case.
    """

    subject: ClassVar[Subject]
    meaning: ClassVar[str]

    def __call__(self, case: Case) -> Outcome:
        """Judge one victim."""
        ...
