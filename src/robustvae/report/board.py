"""A static site of many audits: ranked by protocol, filtered by word, a page for each model."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustvae.errors import DataError, RobustVAEError
from robustvae.records import Record, finish_switch, write_files
from robustvae.records.files import MANIFEST, MARKS, check_sign, manifest
from robustvae.records.parts import ModelFacts
from robustvae.report.cards import KeyNumber, facts_of, key_numbers
from robustvae.report.compare import compare, missing_rows, question_in_words
from robustvae.report.files import read
from robustvae.report.page import gallery_item, render
from robustvae.report.pareto import AGAINST, draw_pareto
from robustvae.rounding import NOT_MEASURED

RECORD = "record.json"
SIGN = "<title>Robustness board</title>"
_FOLDERS = 50_000  # some seconds of looking; a disk from its root has many more
_FILES = ("record.json", "adversarials.safetensors", "rows.parquet", "rows.jsonl")


@final
@dataclass(frozen=True)
class Entry:
    """One row of the board."""

    rank: str
    cells: list[str]
    model: str
    page: str
    reason: str


@final
@dataclass(frozen=True)
class AuditOnPage:
    """One audit on a model's page."""

    place: str
    question: str
    ranks: list[str]
    verdict: tuple[str, ...]
    numbers: list[KeyNumber]
    files: list[tuple[str, str]]
    command: str | None
    gallery: list[dict[str, Any]]


@final
@dataclass(frozen=True)
class Section:
    """All audits of one question."""

    title: str
    head: list[str]
    entries: list[Entry]
    drawings: list[Markup]
    robustness: str
    notes: tuple[str, ...]


Cards = Callable[[ModelFacts], Mapping[str, Any]]
"""What else is known of a model: data, epochs, objective."""


def board(folder: str | Path, out: str | Path, *, cards: Cards | None = None) -> Path:
    """Write a static site of all audits under a folder.

    Audits are grouped by their question. Within a group the rows are ranked by the attacked upper
    bound of the margin. An audit of no protocol, of a shortened one, or whose verdict did not pass
    is shown and not ranked, with the reason.

    Args:
        folder: Where audits lie, at any depth.
        out: Where to write: `index.html`, a page for each model in `models`, with its card, its
            audits and pictures of its attacked inputs, and a folder for each audit, with its
            report, its record and its attacked inputs.
        cards: What a model's page says beside what the audits say of it; nothing by default.

    Returns:
        The path of `index.html`.

    Raises:
        DataError: No audit there that can be read, or too many folders to look through.
        StorageError: The disk cannot be written, or `out` holds somebody else's index.html.
    """
    try:
        paths = _records_below(Path(folder))
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        raise DataError(f"{folder!r} cannot be searched for audits: {error}") from None
    paths = [path for path in paths if not path.is_relative_to(Path(out))]
    records: dict[Path, Record] = {}
    faults: list[str] = []
    for path in paths:
        try:
            records[path] = read(path)
        except RobustVAEError as error:
            faults.append(f"{path.parent.name}: {error}")
    if not records:
        reason = f" ({faults[0]})" if faults else ""
        raise DataError(
            f"{folder} holds no audit that can be read{reason}: run robustvae audit --out "
            f"{folder}/NAME"
        )
    check_sign(Path(out) / "index.html", SIGN)
    places = {path: _slug(record, record.to_json()) for path, record in records.items()}
    pages = {
        path: f"models/{_slug(record, str(record.model.sha256))}.html"
        for path, record in records.items()
    }
    contents: dict[str | Path, bytes] = {}
    for path, record in records.items():
        page = Path(out) / places[path]
        files = {n: path.parent / n for n in _FILES if (path.parent / n).is_file()}
        copies = {"report.html": render(record).encode()}
        copies |= {name: file.read_bytes() for name, file in files.items()}
        contents |= {page / name: content for name, content in copies.items()}
        contents[page / MANIFEST] = manifest(copies).encode()  # so that `verify` reads the page
    groups: dict[str, list[Path]] = {}
    for path, record in records.items():
        groups.setdefault(question_in_words(record), []).append(path)
    sections = [
        _section([records[p] for p in group], [(pages[p], places[p]) for p in group])
        for _, group in sorted(groups.items())
    ]
    environment = Environment(
        loader=PackageLoader("robustvae.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    ranks: dict[str, list[str]] = {}
    for section in sections:
        total = sum(not entry.reason for entry in section.entries)
        for entry in section.entries:
            words = f"rank {entry.rank} of {total}"
            if entry.reason:
                words = f"not ranked ({entry.reason})"
            ranks.setdefault(entry.page, []).append(f"{entry.cells[1]}: {words}")
    for page_name in sorted(set(pages.values())):
        audits = [
            _audit_on_page(records[path], places[path], ranks, contents, Path(out))
            for path in records
            if pages[path] == page_name
        ]
        model = next(records[path].model for path in records if pages[path] == page_name)
        facts = {**facts_of(model), **(cards(model) if cards is not None else {})}
        text = environment.get_template("model.html").render(
            name=model.name, facts=facts, audits=audits
        )
        contents[Path(out) / page_name] = text.encode()
    template = environment.get_template("board.html")
    text = template.render(sections=sections, faults=faults, count=len(records))
    index = Path(out) / "index.html"
    # The index comes last, so that it never names a page that is not there.
    write_files({**contents, index: text.encode()})
    return index


_LABELS = {
    "report.html": "the whole report",
    "record.json": "record",
    "adversarials.safetensors": "inputs, clean and attacked",
    "rows.parquet": "rows",
    "rows.jsonl": "rows",
    MANIFEST: "hashes",
}


def _audit_on_page(
    record: Record,
    place: str,
    ranks: Mapping[str, list[str]],
    contents: Mapping[str | Path, bytes],
    out: Path,
) -> AuditOnPage:
    """One audit on its model's page, with links to the files that the site has of it."""
    return AuditOnPage(
        place=place,
        question=question_in_words(record),
        ranks=ranks.get(f"{place}/report.html", []),
        verdict=record.verdict.sentences,
        numbers=key_numbers(record),
        files=[
            (label, f"{place}/{name}")
            for name, label in _LABELS.items()
            if out / place / name in contents
        ],
        command=record.command,
        gallery=[gallery_item(item, record) for item in record.gallery],
    )


def _records_below(top: Path) -> list[Path]:
    """Every record.json, at any depth: `rglob` calls itself for each level, and gives up."""
    paths, places, count = [], [str(top)], 0
    while places:
        place = places.pop()
        count += 1
        if count > _FOLDERS:
            raise DataError(
                f"{top} holds more than {_FOLDERS:,} folders: name the folder that holds the audits"
            )
        try:
            with os.scandir(place) as entries:
                members = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:  # no folder, not ours to read, or a path longer than the system allows
            continue
        places += [os.path.join(place, name) for name, is_folder in members.items() if is_folder]
        if any(name.startswith(".set.") and fnmatch(name, MARKS) for name in members):
            finish_switch(place)  # of an audit that was killed as it wrote
        elif RECORD not in members:
            continue
        if (path := Path(place) / RECORD).is_file():
            paths.append(path)
    return sorted(paths)


def _section(records: list[Record], places: list[tuple[str, str]]) -> Section:
    key = "margin_upper_box" if records[0].question.box else "margin_upper_unconstrained"
    table = compare(records)
    # What ranks stands first among the numbers.
    headings = sorted(table.headings, key=lambda heading: heading.id != key)
    table = replace(table, headings=tuple(headings))
    owners = [i for i, record in enumerate(records) for _ in record.victims]
    reasons = [_reason(records[i]) for i in owners]
    values = [row.cells[key].mean if key in row.cells else None for row in table.rows]
    reasons = [
        reason or ("no margin was measured" if value is None else "")
        for reason, value in zip(reasons, values, strict=True)
    ]
    order = sorted(range(len(table.rows)), key=lambda i: (bool(reasons[i]), -(values[i] or 0.0), i))
    body = table.body()
    entries, rank = [], 0
    for i in order:
        rank += not reasons[i]
        model, audit = places[owners[i]]
        place = NOT_MEASURED if reasons[i] else str(rank)
        entries.append(Entry(place, body[i], model, f"{audit}/report.html", reasons[i]))
    result = replace(table, rows=tuple(table.rows[i] for i in order))
    drawings = [draw_pareto(result, key, price) for price in AGAINST]
    name = next((heading.label for heading in table.headings if heading.id == key), key)
    pictures = [Markup(drawing) for drawing in drawings if drawing]
    return Section(table.title, table.head(), entries, pictures, name, tuple(missing_rows(records)))


def _reason(record: Record) -> str:
    """Why an audit is not ranked; empty where it is."""
    if not record.verdict.passed:
        return record.verdict.first
    if record.question.protocol is None:
        return "no protocol"
    return "shortened" if record.question.shortened else ""


def _slug(record: Record, content: str) -> str:
    """A name for files: the model's, and what tells apart those of one name."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", record.model.name).strip("-.") or "model"
    return f"{name[:40]}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
