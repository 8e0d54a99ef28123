"""A static site of many audits: ranked by protocol, filtered by word, a page for each."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustvae.errors import DataError, RobustVAEError
from robustvae.records import Record, finish_switch, write_files
from robustvae.records.files import MANIFEST, MARKS, check_sign, manifest
from robustvae.report.compare import compare, question_in_words
from robustvae.report.files import read
from robustvae.report.page import render
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
    page: str
    reason: str


@final
@dataclass(frozen=True)
class Section:
    """All audits of one question."""

    title: str
    head: list[str]
    entries: list[Entry]
    drawings: list[Markup]
    robustness: str


def board(folder: str | Path, out: str | Path) -> Path:
    """Write a static site of all audits under a folder.

    Audits are grouped by their question. Within a group the rows are ranked by the attacked upper
    bound of the margin. An audit of no protocol, of a shortened one, or whose verdict did not pass
    is shown and not ranked, with the reason.

    Args:
        folder: Where audits lie, at any depth.
        out: Where to write: `index.html` and a folder for each audit, with its page, its record
            and its adversarials.

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
    places = {path: f"{_slug(record)}" for path, record in records.items()}
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
        _section([records[path] for path in group], [places[path] for path in group])
        for _, group in sorted(groups.items())
    ]
    environment = Environment(
        loader=PackageLoader("robustvae.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("board.html")
    text = template.render(sections=sections, faults=faults, count=len(records))
    index = Path(out) / "index.html"
    # The index comes last, so that it never names a page that is not there.
    write_files({**contents, index: text.encode()})
    return index


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


def _section(records: list[Record], places: list[str]) -> Section:
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
        page = f"{places[owners[i]]}/report.html"
        place = NOT_MEASURED if reasons[i] else str(rank)
        entries.append(Entry(place, body[i], page, reasons[i]))
    result = replace(table, rows=tuple(table.rows[i] for i in order))
    drawings = [draw_pareto(result, key, price) for price in AGAINST]
    name = next((heading.label for heading in table.headings if heading.id == key), key)
    return Section(table.title, table.head(), entries, [Markup(d) for d in drawings if d], name)


def _reason(record: Record) -> str:
    """Why an audit is not ranked; empty where it is."""
    if not record.verdict.passed:
        return record.verdict.first
    if record.question.protocol is None:
        return "no protocol"
    return "shortened" if record.question.shortened else ""


def _slug(record: Record) -> str:
    """A folder's name: the model's, and what tells its audits apart."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", record.model.name).strip("-.") or "model"
    digest = hashlib.sha256(record.to_json().encode()).hexdigest()
    return f"{name[:40]}-{digest[:8]}"
