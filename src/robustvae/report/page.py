"""The record as one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from robustvae.records import Record
from robustvae.records.parts import GalleryItem, Panel
from robustvae.records.requirements import outcomes
from robustvae.report import curves, drawing, figures, reading
from robustvae.report.advice import advise
from robustvae.report.band import band, input_bands
from robustvae.report.cards import ROUNDINGS, KeyNumber, key_number, key_numbers
from robustvae.report.failures import failing_rows
from robustvae.report.profiles.section import section_of
from robustvae.rounding import NOT_MEASURED, ceil, given, near, norm

WIDTHS = {"wide": 760, "narrow": 358}
PANELS = (
    "input",
    "attacked",
    "difference",
    "reconstruction",
    "attacked reconstruction",
    "undefended reconstruction",
)
MOST_ROWS = 600
# Shown before a reader asks for all columns: what was attacked, how hard, and what came of it.
DEFAULT_COLUMNS = (
    *("victim", "input", "label", "attack", "size", "status", "damage", "damage_noise"),
    *("ms_ssim_attacked", "probability", "certified", "margin_upper_box"),
)
MOST_COLUMNS = 12
MOST_FAILURES = 12

_CHOSEN = ("radius",)
_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'


def render(record: Record) -> str:
    """The whole page as text; equal records give equal text.

    Args:
        record: An audit.

    Returns:
        HTML with its style and pictures inside; no address in it is ever fetched.
    """
    environment = Environment(
        loader=PackageLoader("robustvae.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=_breakable,
        ceil=ceil,
        cell=_cell,
        near=near,
        norm=norm,
        signed=_signed,
        unit=_unit,
        words=_words,
    )
    measured = reading.columns(record)
    rounding = {column.id: column.rounding for column in measured}
    script = _read("report.js")
    failures = failing_rows(record)
    environment.filters["cell"] = functools.partial(_cell, rounding=rounding)
    others = [check for check in record.checks if check.victim != record.victims[0].name]
    return environment.get_template("report.html").render(
        record=record,
        style=Markup(drawing.STYLE),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        command=record.command,
        requirements=outcomes(record),
        advice=advise(record),
        damage_curve=_drawn(curves.damage_curve, record),
        classes=_drawn(curves.classes, record),
        failures=failures[:MOST_FAILURES],
        failures_in_all=len(failures),
        verdict=record.verdict,
        use=_use(record),
        meaning=reading.margin_in_words(record),
        failed=reading.failed_checks(record),
        changed=record.changed_rows,
        headlines=key_numbers(record),
        means=[key_number(entry) for entry in record.summary],
        band=_drawn(band, record),
        band_is_proved=any(one.certified for one in input_bands(record)),
        bracket_is_proved=any(one.certified for one in reading.brackets(reading.rows_of(record))),
        bracket=_drawn(figures.bracket, record),
        coverage=_drawn(figures.coverage, record),
        bracket_facts=list(reading.bracket_facts(record)),
        damage=_drawn(figures.damage, record),
        similarity=_drawn(figures.similarity, record),
        attacks=[
            _attack_line(attack) for attack in (*reading.worst(record), *reading.attacks(record))
        ],
        victims=record.victims if len(record.victims) > 1 or record.victims[0].defended else [],
        others=bool(others),
        gallery=[gallery_item(item, record) for item in record.gallery],
        has_images=any(panel.png for item in record.gallery for panel in item.panels.values()),
        columns=measured,
        wordy={column.id for column in measured if column.kind == "text"},
        few=default_columns(record, [column.id for column in measured]),
        rows=record.rows[:MOST_ROWS],
        left_out=max(0, len(record.rows) - MOST_ROWS),
        plan=json.dumps(record.plan, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    )


def default_columns(record: Record, names: list[str]) -> set[str]:
    """At most twelve columns that are shown at first; a profile's own go before the last of ours.

    Args:
        record: An audit.
        names: Ids of the columns that hold anything.
    """
    if len(record.victims) == 1:
        names = [name for name in names if name != "victim"]
    few = [name for name in DEFAULT_COLUMNS if name in names]
    headlines = [column.id for column in record.columns if column.headline]
    few += [name for name in [*headlines, *names] if name in names and name not in few]
    return set(few[:MOST_COLUMNS])


def _read(name: str) -> str:
    """A file beside the templates, as it is."""
    path = resources.files("robustvae.report") / "templates" / name
    return path.read_text(encoding="utf-8").strip()


def _drawn(figure: Callable[[Record, int], str], record: Record) -> dict[str, Markup]:
    """One figure at each width; the page shows the one that fits."""
    return _at_widths(functools.partial(figure, record))


def _at_widths(draw: Callable[[int], str]) -> dict[str, Markup]:
    drawings = {name: draw(width) for name, width in WIDTHS.items()}
    return {
        name: Markup(svg.replace(_NAMESPACE, "", 1).replace(f"<style>{drawing.STYLE}</style>", ""))
        for name, svg in drawings.items()
        if svg
    }


def _use(record: Record) -> dict[str, Any] | None:
    """The section of the record's use, ready for the page."""
    section = section_of(record)
    if section is None or record.use is None:
        return None
    drawings = [(_at_widths(draw), caption) for draw, caption in section.figures]
    return {
        "title": section.title,
        "answer": section.answer,
        "tables": [(table.title, Markup(table.to_html())) for table in section.tables],
        "figures": [(drawing, caption) for drawing, caption in drawings if drawing],
        "notes": section.notes,
        "gallery": [gallery_item(item, record) for item in record.use.gallery],
    }


def _unit(entry: KeyNumber) -> str:
    return ", ".join(str(part) for part in (entry.unit, f"n = {entry.n}") if part)


def _attack_line(attack: reading.AttackRows) -> dict[str, Any]:
    columns = {key: reading.mean_stderr(attack.column(key)) for key in _DAMAGES}
    hit, noise = columns["damage"][0], columns["damage_noise"][0]
    return {
        "attack": attack,
        "damages": [columns[key] for key in _DAMAGES],
        "times": near(hit / noise, 2) if hit is not None and noise else NOT_MEASURED,
    }


_DAMAGES = ("damage", "damage_noise", "ms_ssim_attacked")


def gallery_item(item: GalleryItem, record: Record) -> dict[str, Any]:
    """One attack's pictures, ready for a page."""
    names = [name for name in PANELS if name in item.panels]
    names += sorted(name for name in item.panels if name not in PANELS)
    of = f"input {item.input}" + ("" if item.label is None else f", label {item.label}")
    rows = record.rows[:MOST_ROWS]
    return {
        "of": of,
        "attack": item.attack,
        "caption": item.caption,
        "place": item.place,
        "row": next(
            (
                i
                for i, row in enumerate(rows)
                if (row.get("input"), row.get("attack")) == (item.input, item.attack)
            ),
            None,
        ),
        "panels": [
            _panel(name, item.panels[name], f"{name}: {of}, {item.attack}") for name in names
        ],
    }


def _panel(name: str, panel: Panel, words: str) -> dict[str, Any]:
    picture = ""
    if panel.values:
        svg = curves.signal(panel.values, panel.low, panel.high, words)
        picture = svg.replace(_NAMESPACE, "", 1).replace(f"<style>{drawing.STYLE}</style>", "")
    return {
        "name": name,
        "height": panel.shape[-2] if len(panel.shape) > 1 else 1,
        "width": panel.shape[-1],
        "png": panel.png,
        "svg": Markup(picture),
        "alt": words,
    }


def _breakable(text: Any) -> Markup:
    """Text that a line may break after each field of a spec, and not within a word."""
    return Markup(re.sub(r"(?<=[,:])(?=\S)", "<wbr>", str(escape(text))))


def _words(key: str) -> str:
    return key.replace("_", " ")


def _cell(value: Any, key: str = "", rounding: Mapping[str, str] | None = None) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if key in _CHOSEN:
        return given(value)
    if isinstance(value, float) or value in ("inf", "-inf"):
        return ROUNDINGS[(rounding or {}).get(key, "near")](value)
    if isinstance(value, list | tuple):
        return " \N{MULTIPLICATION SIGN} ".join(_cell(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in sorted(value.items()))
    return str(value)


def _signed(pair: Iterable[float | None]) -> str:
    """A mean and its standard error as one piece of text."""
    middle, stderr = pair
    return near(middle) if stderr is None else f"{near(middle)} ± {ceil(stderr, 2)}"
