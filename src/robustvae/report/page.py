"""The record as one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustvae.records import Record
from robustvae.report import figures, reading
from robustvae.report.numbers import NOT_MEASURED, ceil, given, near, norm, number, rounded

WIDTHS = {"wide": 760, "narrow": 358}
PANELS = (
    "input",
    "attacked",
    "difference",
    "reconstruction",
    "attacked reconstruction",
    "defended reconstruction",
)
MOST_ROWS = 600

_CHOSEN = ("radius", "r", "m")
_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
_HEADINGS = {
    "damage": "damage",
    "damage_noise": "damage, noise",
    "damage_defended": "damage, defended",
    "gradient_norm": "gradient",
    "inside": "in the ball",
    "margin_upper_box": "attacked margin, in range",
    "margin_upper_unconstrained": "attacked margin, free",
    "margin_upper_status": "attacked margin, status",
    "ms_ssim_attacked": "MS-SSIM, attacked",
    "ms_ssim_clean": "MS-SSIM, clean",
    "ms_ssim_defended": "MS-SSIM, defended",
    "ms_ssim_noise": "MS-SSIM, noise",
    "ms_ssim_variant": "MS-SSIM variant",
    "probability_high": "probability, high",
    "probability_low": "probability, low",
}


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
        ceil=ceil, cell=_cell, heading=_heading, near=near, norm=norm, signed=_signed, unit=_unit
    )
    measured = [
        key
        for key in reading.columns(record.rows)
        if any(row.get(key) is not None for row in record.rows)
    ]
    return environment.get_template("report.html").render(
        record=record,
        style=Markup(figures.STYLE),
        verdict=reading.verdict(record),
        meaning=reading.margin_in_words(record),
        failed=reading.failed_checks(record),
        headlines=[_key_number(entry) for entry in reading.headlines(record)],
        means=[_key_number(entry) for entry in record.summary],
        bracket=_drawn(figures.bracket, record),
        coverage=_drawn(figures.coverage, record),
        bracket_facts=list(reading.bracket_facts(record)),
        damage=_drawn(figures.damage, record),
        similarity=_drawn(figures.similarity, record),
        ms_ssim_variant=reading.first(record.rows, "ms_ssim_variant"),
        attacks=[_attack_line(attack) for attack in reading.attacks(record)],
        gallery=[_gallery_item(item) for item in record.gallery],
        columns=measured,
        wordy={key for key in measured if _is_wordy(record.rows, key)},
        rows=record.rows[:MOST_ROWS],
        left_out=max(0, len(record.rows) - MOST_ROWS),
        plan=json.dumps(record.plan, indent=2, sort_keys=True, ensure_ascii=False, default=str),
    )


def _drawn(figure: Callable[[Record, int], str], record: Record) -> dict[str, Markup]:
    """One figure at each width; the page shows the one that fits."""
    drawings = {name: figure(record, width) for name, width in WIDTHS.items()}
    return {
        name: Markup(svg.replace(_NAMESPACE, "", 1).replace(f"<style>{figures.STYLE}</style>", ""))
        for name, svg in drawings.items()
        if svg
    }


def _key_number(entry: dict[str, Any]) -> dict[str, Any]:
    stderr = number(entry.get("stderr"))
    known = stderr is not None and math.isfinite(stderr)
    return {
        **entry,
        "shown": rounded(str(entry.get("key", "")), entry.get("mean")),
        "error": ceil(stderr, 2) if known else "",
    }


def _unit(entry: dict[str, Any]) -> str:
    count = "" if entry.get("n") is None else f"n = {entry['n']}"
    return ", ".join(str(part) for part in (entry.get("unit"), count, entry.get("under")) if part)


def _attack_line(attack: reading.AttackRows) -> dict[str, Any]:
    columns = {key: reading.mean_stderr(attack.column(key)) for key in _DAMAGES}
    hit, noise = columns["damage"][0], columns["damage_noise"][0]
    return {
        "attack": attack,
        "damages": [columns[key] for key in _DAMAGES],
        "times": near(hit / noise, 2) if hit is not None and noise else NOT_MEASURED,
    }


_DAMAGES = ("damage", "damage_noise", "damage_defended")


def _gallery_item(item: dict[str, Any]) -> dict[str, Any]:
    panels = item.get("panels", {})
    names = [name for name in PANELS if name in panels]
    names += sorted(name for name in panels if name not in PANELS)
    label = item.get("label")
    of = f"input {item.get('input')}" + ("" if label is None else f", label {label}")
    return {
        "of": of,
        "attack": item.get("attack"),
        "caption": item.get("caption", ""),
        "panels": [
            {
                "name": name,
                "height": panels[name]["shape"][-2],
                "width": panels[name]["shape"][-1],
                "png": panels[name]["png"],
                "alt": f"{name}: {of}, {item.get('attack')}",
            }
            for name in names
        ],
    }


def _is_wordy(rows: Sequence[dict[str, Any]], key: str) -> bool:
    values = [row.get(key) for row in rows]
    return any(isinstance(value, str) and number(value) is None for value in values)


def _heading(key: str) -> str:
    return _HEADINGS.get(key, key.replace("_", " "))


def _cell(value: Any, key: str = "") -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if key in _CHOSEN:
        return given(value)
    if isinstance(value, float) or value in ("inf", "-inf"):
        return rounded(key, value)
    if isinstance(value, list | tuple):
        return " \N{MULTIPLICATION SIGN} ".join(_cell(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in sorted(value.items()))
    return str(value)


def _signed(pair: Iterable[float | None]) -> str:
    """A mean and its standard error as one piece of text."""
    middle, stderr = pair
    return near(middle) if stderr is None else f"{near(middle)} ± {ceil(stderr, 2)}"
