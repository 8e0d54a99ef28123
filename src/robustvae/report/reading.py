"""What a record says: its brackets, its attacks side by side, and what its numbers mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

from robustvae.records import CheckResult, Column, Record, SummaryEntry
from robustvae.rounding import floor, given, near, norm, number

Row = dict[str, Any]


@final
@dataclass(frozen=True)
class Bracket:
    """What is known of one input's margin, l2 in pixel units; None where nothing was measured."""

    input: Any
    label: Any
    certified: float | None
    kind: str | None
    abstained: bool
    free: float | None
    box: float | None
    first_order: float | None

    @property
    def upper(self) -> float | None:
        """The attacked bound that the certificate is set against: free where there is one."""
        return self.box if self.free is None else self.free

    @property
    def measured(self) -> bool:
        """Whether there is anything to draw."""
        parts = (self.certified, self.free, self.box, self.first_order)
        return any(part is not None for part in parts)


@final
@dataclass(frozen=True)
class AttackRows:
    """All rows of one attack."""

    name: str
    rows: tuple[Row, ...]
    m: float | None = None

    def column(self, key: str) -> list[float]:
        """The finite numbers of one column."""
        return finite(row.get(key) for row in self.rows)

    @property
    def broken(self) -> int:
        """Inputs at which even the upper end of the probability is at most m."""
        return sum(_compare(row, "probability_high", self.m) <= 0 for row in self.rows)

    @property
    def held(self) -> int:
        """Inputs at which even the lower end of the probability is above m."""
        return sum(_compare(row, "probability_low", self.m) > 0 for row in self.rows)

    @property
    def judged(self) -> int:
        """Inputs with a measured probability."""
        return sum(number(row.get("probability")) is not None for row in self.rows)

    @property
    def inconclusive(self) -> int:
        """Inputs at which the search did not end well, such as for want of a gradient."""
        return sum(map(inconclusive, self.rows))

    @property
    def threat(self) -> str:
        """Norm, budget and box in words."""
        row = self.rows[0]
        where = "pixels kept in range" if row.get("box") else "unconstrained"
        return f"{norm(row.get('norm'))} at most {given(row.get('radius'))}, {where}"

    @property
    def knows(self) -> str:
        """What the attacker knew."""
        return str(first(self.rows, "knows") or "")


def inconclusive(row: Row) -> bool:
    """Whether the search behind a row did not end well."""
    return row.get("status") not in (None, "", "ok")


def brackets(rows: Iterable[Row]) -> list[Bracket]:
    """One `Bracket` for each input that has any part of one, in the order of the rows."""
    inputs: dict[Any, list[Row]] = {}
    for row in rows:
        inputs.setdefault(row.get("input"), []).append(row)
    candidates = (
        Bracket(
            input=name,
            label=first(rows_of_input, "label"),
            certified=number(first(rows_of_input, "certified")),
            kind=first(rows_of_input, "certified_kind"),
            abstained=first(rows_of_input, "certified_status") == "abstain",
            free=number(first(rows_of_input, "margin_upper_unconstrained")),
            box=number(first(rows_of_input, "margin_upper_box")),
            first_order=number(first(rows_of_input, "first_order")),
        )
        for name, rows_of_input in inputs.items()
    )
    return [bracket for bracket in candidates if bracket.measured]


def kind_in_words(found: Iterable[Bracket]) -> str:
    """Of which kind the certificates are that hold, such as " (probabilistic)"; else nothing."""
    kinds = sorted({bracket.kind for bracket in found if bracket.certified and bracket.kind})
    return f" ({', '.join(kinds)})" if kinds else ""


def rows_of(record: Record, victim: str | None = None) -> list[Row]:
    """The rows of one victim, by default of the first one, which the headline speaks of."""
    name = record.victims[0].name if victim is None else victim
    return [row for row in record.rows if row.get("victim") == name]


def attacks(record: Record, victim: str | None = None) -> list[AttackRows]:
    """The rows of each attack on one victim, in the order in which the attacks came."""
    by_name: dict[str, list[Row]] = {}
    for row in rows_of(record, victim):
        by_name.setdefault(str(row.get("attack")), []).append(row)
    return [AttackRows(name, tuple(rows), record.question.m) for name, rows in by_name.items()]


def worst(record: Record, victim: str | None = None) -> list[AttackRows]:
    """For each ball the worst attack on each input, by the damage it did."""
    balls: dict[str, dict[Any, Row]] = {}
    for row in rows_of(record, victim):
        ball = f"worst attack in {row.get('norm')} {given(row.get('radius'))}"
        by_input = balls.setdefault(ball, {})
        damage = number(row.get("damage"))
        before = number(by_input.get(row.get("input"), {}).get("damage"))
        if damage is not None and (before is None or damage > before):
            by_input[row.get("input")] = row
    return [
        AttackRows(name, tuple(rows.values()), record.question.m)
        for name, rows in balls.items()
        if rows
    ]


def columns(record: Record) -> list[Column]:
    """The columns with a value in any row, in their declared order."""
    return [
        column
        for column in record.columns
        if any(row.get(column.id) is not None for row in record.rows)
    ]


def first(rows: Iterable[Row], key: str) -> Any:
    """The first value of a column that is not None."""
    return next((row[key] for row in rows if row.get(key) is not None), None)


def finite(values: Iterable[Any]) -> list[float]:
    """The finite numbers among `values`."""
    parsed = (number(value) for value in values)
    return [value for value in parsed if value is not None and math.isfinite(value)]


def mean(values: Iterable[Any]) -> float | None:
    """Mean of the finite numbers among `values`; None where there is none."""
    numbers = finite(values)
    return math.fsum(numbers) / len(numbers) if numbers else None


def mean_stderr(values: Iterable[Any]) -> tuple[float | None, float | None]:
    """Mean and standard error of the finite numbers among `values`."""
    numbers = finite(values)
    middle = mean(numbers)
    if middle is None or len(numbers) < 2:
        return middle, None
    variance = math.fsum((value - middle) ** 2 for value in numbers) / (len(numbers) - 1)
    return middle, math.sqrt(variance / len(numbers))


def everywhere(values: Iterable[float | None]) -> float | None:
    """Mean of values that are all there and finite; None where one is not."""
    numbers = list(values)
    is_complete = all(value is not None and math.isfinite(value) for value in numbers)
    return mean(numbers) if is_complete else None


def headlines(record: Record) -> list[SummaryEntry]:
    """The summary's best-known numbers; all of it, as it stands, where none has a headline."""
    return [entry for entry in record.summary if entry.headline] or record.summary


def failed_checks(record: Record) -> list[CheckResult]:
    """The checks that did not pass."""
    return [check for check in record.checks if check.passed is False]


def margin_in_words(record: Record) -> str:
    """What "breaks" means in this record."""
    question = record.question
    often = (
        "at least half of the time"
        if question.m == 0.5
        else f"with probability {near(1 - question.m)} or more"
    )
    if question.displacement == "paired":
        event = (
            "two draws of the reconstruction, of the changed and of the clean input, "
            f"lie more than r = {given(question.r)} apart"
        )
    else:
        event = (
            f"the reconstruction lands more than r = {given(question.r)} away from the clean one"
        )
    return (
        f"A change breaks the model when {event} {often} (m = {given(question.m)}). "
        f"r is {question.rule}. "
        f"Sizes are {norm(question.norm)} and distances \N{SCRIPT SMALL L}\N{SUBSCRIPT TWO} in "
        "pixel units: turning one pixel from black to white is 1."
    )


def bracket_facts(record: Record) -> Iterator[str]:
    """Sentences under the bracket figure."""
    members = brackets(rows_of(record))
    positive = [b for b in members if b.certified]
    if any(b.certified is not None for b in members):
        yield f"Certified above zero: {len(positive)} of {len(members)} inputs."
        ratios = [b.certified / b.free for b in positive if b.certified and b.free]
        share = mean(ratios)
        if share is not None:
            yield (
                "Where both ends are known, the certified bound is on average "
                f"{floor(100 * share, 2)}\N{NO-BREAK SPACE}% of the attacked one (unconstrained)."
            )
        yield (
            "What is certified for unconstrained changes holds for pixels kept in range too; an "
            "unconstrained attack says nothing about them."
        )
    open_count = sum(b.upper is not None and math.isinf(b.upper) for b in members)
    if open_count:
        yield f"No attack broke {open_count} of {len(members)} inputs: their upper end is open."
    fragile = sum(b.upper == 0 for b in members)
    if fragile:
        yield f"{fragile} of {len(members)} inputs are not robust even when left alone: margin 0."


def _compare(row: Row, key: str, m: float | None) -> float:
    """Sign of a probability against m; NaN, which is neither, where it was not measured."""
    probability = number(row.get(key))
    return math.nan if probability is None or m is None else probability - m
