"""Several audits side by side: one row for each victim, differences over the inputs they share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from robustvae.arguments import checked
from robustvae.errors import ConfigError, DtypeError
from robustvae.records import Record
from robustvae.records.intervals import mean_interval
from robustvae.records.parts import VictimFacts
from robustvae.report import reading
from robustvae.report.failures import failing_rows
from robustvae.report.files import read
from robustvae.report.tables import Cell, Heading, Row, Table, cell_of
from robustvae.rounding import given, norm, number

# What belongs beside every margin, whether it is a key number of its record or not: a model that
# reconstructs badly, or a defense that costs much, is robust for the wrong reason.
CLEAN_ERROR = "error_clean"
COST = Heading(
    "cost", "Cost of reading a code", "gradients and passes for one input", better="lower"
)
_BESIDE = (CLEAN_ERROR, "price")
_QUESTION = ("norm", "r", "m", "displacement", "center", "box")


@checked()
def compare(records: Sequence[Record | str | Path]) -> Table:
    """One table of several audits that ask the same question of the same data.

    Each victim of each record is a row. The rows below are compared with the first: the difference
    of a column is a mean over the inputs that both rows have, so what makes inputs hard or easy
    cancels, with its 95 % interval.

    Args:
        records: Records, or the folders that audits wrote.

    Returns:
        A `Table`: `.to_csv() .to_latex() .to_html() .to_markdown() .to_json() .to_frame()`.

    Raises:
        DtypeError: Something that is neither a record nor the path of one.
        DataError: A path that holds no record.
        ConfigError: No records, or records of different questions or data; the first difference is
            named.

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> names = ("digits-vae", "digits-lipschitz-vae")
        >>> ask = {"plan": "smoke", "question": {"r": 0.86}, "seed": 0}
        >>> records = [rv.audit(rv.load(name), images, **ask) for name in names]
        >>> table = rv.compare(records)
        >>> len(table.rows), len(table.differences)
        (2, 1)
    """
    if not isinstance(records, list | tuple):
        kind = type(records).__name__
        raise DtypeError(f"compare wants a list of records, got {kind}: write [record, other]")
    audits = [_record(record) for record in records]
    if not audits:
        raise ConfigError("compare wants at least one record, got none: name the folders of audits")
    check_comparable(audits)
    victims = [(record, place) for record in audits for place in range(len(record.victims))]
    headings = _headings(audits)
    labels = _labels(victims)
    rows = [
        Row(name, _cells(record, place, headings))
        for name, (record, place) in zip(labels, victims, strict=True)
    ]
    differences = [
        Row(labels[i], cells)
        for i in range(1, len(victims))
        if (cells := _differences(victims[0], victims[i], headings))
    ]
    keys = {key for row in rows for key in row.cells}
    return Table(
        title=question_in_words(audits[0]),
        headings=tuple(heading for heading in headings if heading.id in keys),
        rows=tuple(rows),
        differences=tuple(differences),
        notes=tuple(_notes(audits, bool(differences), len(victims))),
        failures=tuple(_failures(audits)),
    )


def check_comparable(records: Sequence[Record]) -> None:
    """Raise `ConfigError` unless all records ask the same question of the same data."""
    first = records[0]
    for other in records[1:]:
        for key in _QUESTION:
            one, two = getattr(first.question, key), getattr(other.question, key)
            if one != two:
                raise _unequal(key, one, two, first, other)
        for key in ("name", "split"):
            one, two = getattr(first.data, key), getattr(other.data, key)
            if one != two:
                raise _unequal(f"data {key}", one, two, first, other)
        if first.question.name != other.question.name:
            raise _unequal("protocol", first.question.name, other.question.name, first, other)
        one, two = (_first_ball(record) for record in (first, other))
        if one != two and None not in (one, two):
            raise _unequal("the headline's attack", one, two, first, other)


def _first_ball(record: Record) -> str | None:
    """The ball whose worst attack is the headline, in words; None where no attack ran."""
    groups = reading.worst(record, record.victims[0].name)
    return groups[0].name.removeprefix("worst attack in ") if groups else None


def question_in_words(record: Record) -> str:
    """The question and the data of a record, in one line."""
    question, data = record.question, record.data
    box = "pixels kept in range" if question.box else "unconstrained"
    name = f"{question.name}: " if question.name else ""
    return (
        f"{name}{data.name} ({data.split}), {norm(question.norm)}, r = {given(question.r)}, "
        f"m = {given(question.m)}, {question.displacement}, {box}"
    )


def _unequal(what: str, one: Any, two: Any, first: Record, other: Record) -> ConfigError:
    return ConfigError(
        f"these audits ask different questions: {what} is {one} in {first.title!r} and {two} in "
        f"{other.title!r}; audit both with the same --protocol, or the same --data, --r, --m, "
        "--norm and plan"
    )


def _record(record: Record | str | Path) -> Record:
    if isinstance(record, Record):
        return record
    if isinstance(record, str | Path):
        return read(record)
    raise DtypeError(
        f"compare wants records or the folders of audits, got {type(record).__name__}: "
        "use rv.audit, or a path"
    )


_FAILURE = ("victim", "input", "label", "attack", "size", "damage", "probability")


def _failures(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The failing rows of all records, the most harmful first."""
    failures = [
        {
            "model": record.model.name,
            **{key: failure.row.get(key) for key in _FAILURE},
            "reason": failure.reason,
        }
        for record in records
        for failure in failing_rows(record)
    ]
    return sorted(failures, key=_harm, reverse=True)


def _harm(failure: dict[str, Any]) -> float:
    damage, size = number(failure["damage"]), number(failure["size"])
    return 0.0 if damage is None or not size else damage / size


def _labels(victims: Sequence[tuple[Record, int]]) -> list[dict[str, str]]:
    """Model and defense of each row; equal ones are numbered."""
    counts: dict[tuple[str, str], int] = {}
    labels = []
    for record, place in victims:
        victim = record.victims[place]
        key = (record.model.name, victim.name)
        counts[key] = counts.get(key, 0) + 1
        number_of = f" ({counts[key]})" if counts[key] > 1 else ""
        labels.append({"model": record.model.name + number_of, "victim": victim.name})
    return labels


def _headings(records: Sequence[Record]) -> list[Heading]:
    """The key numbers of all records, in the order of the first that has them.

    A number that only a defended victim has, such as a certificate by smoothing, comes after them.
    """
    headings: dict[str, Heading] = {}
    for record in records:
        key_numbers = reading.headlines(record)
        beside = [e for e in record.summary if e.key in _BESIDE and e not in key_numbers]
        for entry in [*key_numbers, *beside]:
            if " / " not in entry.key and entry.key not in headings:
                headings[entry.key] = Heading(
                    entry.key,
                    entry.headline or entry.label,
                    entry.unit,
                    entry.rounding,
                    entry.better,
                )
    for record in records:
        entries = {entry.key: entry for entry in record.summary}
        for column in record.columns:
            keys = [f"{column.id} / {victim.name}" for victim in record.victims]
            defended = next((entries[key] for key in keys if key in entries), None)
            if column.headline and defended is not None and column.id not in headings:
                headings[column.id] = Heading(
                    column.id, column.headline, defended.unit, defended.rounding, defended.better
                )
    victims = [victim for record in records for victim in record.victims]
    if len({_cost(victim) for victim in victims} - {None}) > 1:
        headings[COST.id] = COST
    return list(headings.values())


def _cost(victim: VictimFacts) -> float | None:
    """Gradients and passes that reading one code takes, where the audit measured them."""
    counts = victim.probes.get("cost")
    return float(sum(counts.values())) if isinstance(counts, dict) else None


def _cells(record: Record, place: int, headings: Sequence[Heading]) -> dict[str, Cell]:
    victim = record.victims[place]
    suffix = "" if place == 0 else f" / {victim.name}"
    entries = {entry.key: entry for entry in record.summary}
    cells: dict[str, Cell | None] = {}
    for heading in headings:
        entry = entries.get(heading.id + suffix)
        if entry is not None:
            cells[heading.id] = cell_of(entry.mean, entry.low, entry.high, entry.n)
    if COST in headings:
        cells[COST.id] = cell_of(_cost(victim))
    return {key: cell for key, cell in cells.items() if cell is not None}


def _differences(
    first: tuple[Record, int], other: tuple[Record, int], headings: Iterable[Heading]
) -> dict[str, Cell]:
    """Means of the differences over shared inputs, which are those of the same data and number."""
    cells: dict[str, Cell] = {}
    if not _same_inputs(first[0], other[0]):
        return cells
    for heading in headings:
        one, two = (_by_input(record, place, heading.id) for record, place in (first, other))
        gaps = [two[key] - one[key] for key in one if key in two]
        if gaps:
            low, high = mean_interval(gaps)
            cells[heading.id] = Cell(math.fsum(gaps) / len(gaps), low, high, len(gaps))
    return cells


def _same_inputs(one: Record, two: Record) -> bool:
    """Whether an input's number means the same input in both: their hashes tell where all meet."""
    numbers = [{row.get("input") for row in record.rows} for record in (one, two)]
    hashes = [record.data.sha256 for record in (one, two)]
    return numbers[0] != numbers[1] or None in hashes or hashes[0] == hashes[1]


def _by_input(record: Record, place: int, key: str) -> dict[Any, float]:
    """A column's finite number for each input: of the worst attack in the first ball."""
    victim = record.victims[place].name
    column = next((column for column in record.columns if column.id == key), None)
    if column is None:
        return {}
    groups = reading.worst(record, victim)
    rows: Iterable[dict[str, Any]] = reading.rows_of(record, victim)
    if column.per == "attack" and groups:
        rows = groups[0].rows
    values: dict[Any, float] = {}
    for row in rows:
        value = number(row.get(key))
        if value is not None and math.isfinite(value):
            values.setdefault(row.get("input"), value)
    return values


def _notes(records: Sequence[Record], differences: bool, victims: int) -> Iterable[str]:
    for record in records:
        if not record.verdict.passed:
            yield f"{record.title}: {record.verdict.first}"
    yield from missing_rows(records)
    yield (
        "Means over inputs with half the width of their 95 % intervals, or both ends where one "
        "is far off; ↑ higher is better."
    )
    if differences:
        yield "Differences are over the inputs that both rows have, with their own intervals."
    elif victims > 1:
        yield "The rows share no inputs: differences of their means have no paired interval."


def missing_rows(records: Sequence[Record]) -> Iterable[str]:
    """Which defenses have no row, of which models, and why: a sentence for each reason."""
    models: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for omission in record.left_out:
            if omission.stage == "victim":
                key = (omission.victim, omission.reason)
                models.setdefault(key, []).append(record.model.name)
    for (victim, reason), names in models.items():
        yield f"No row for {victim} of {', '.join(names)}: {reason}."
