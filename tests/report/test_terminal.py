"""The table that an audit ends with."""

from __future__ import annotations

import pytest
from rich.console import Console

import robustvae as rv
from robustvae.rounding import NOT_MEASURED


def printed(record, width=100):
    console = Console(width=width, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rv.report.table(record))
    console.file.close()
    return console.export_text()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_it_says_the_essentials(make_record, width):
    text = " ".join(printed(make_record(), width).split())
    assert text.index("Useful; not evidence of robustness") < text.index("key numbers")
    assert "Certified radius (deterministic)" in text
    assert "maximum damage" in text and "of 40" in text
    assert "✗ gradient_seen: 2 of 80" in text
    assert "Its row is inconclusive." in text
    assert "✓ passed: certified_below_attacked" in text
    assert f"{NOT_MEASURED} not judged, too little was measured: same_output_twice" in text


def test_names_are_not_markup(make_record):
    record = make_record(2, title="[bold]model[/bold] [/nonsense]")
    for row in record.rows:
        row["attack"] = "[red]attack[/red] [/"
    text = printed(record)
    assert "[bold]model[/bold] [/nonsense]" in text and "[red]attack[/red] [/" in text


def test_an_empty_record(make_record):
    assert "digits-lipschitz-vae" in printed(make_record(2, rows=[], summary=[], checks=[]))


def test_title_has_no_control_characters(make_record):
    record = make_record(3).model_copy(update={"title": "x\x1b[31m on digits"})
    assert "\x1b" not in printed(record) and "on digits" in printed(record)
