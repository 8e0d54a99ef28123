"""The band: what is drawn is what the record holds, and the bracket is a cut through it."""

from __future__ import annotations

import math

import pytest

from robustvae.records.along import ATTACKED, CERTIFIED
from robustvae.report.band import band, input_bands
from robustvae.report.page import render


@pytest.fixture
def record(make_record):
    """Two inputs whose certified radius is half of r, whose outputs move by the change."""
    base = make_record(2)
    rows = []
    for place, row in enumerate(base.rows):
        scale = 1.0 + (place >= len(base.rows) // 2)
        row = {**row, "size": 2.0, "norm": base.question.norm, "margin_upper_box": None}
        row |= {key: 0.5 * base.question.r * t * scale for key, t in CERTIFIED.items()}
        row |= {key: 2.0 * share for key, share in ATTACKED.items()}
        rows.append({**row, "margin_upper_unconstrained": base.question.r})
    return base.model_copy(update={"rows": rows})


def test_bands_read_the_columns(record) -> None:
    r = record.question.r
    first, second = input_bands(record)
    assert [tolerance for _, tolerance in first.certified] == [
        t * r for t in (0.5, 0.75, 1, 1.5, 2)
    ]
    assert first.certified_at(0.5 * r) == r and second.certified_at(0.5 * r) == 0.5 * r
    assert first.certified_at(1.01 * r) == math.inf
    assert first.attacked_at(1.0) == 1.0 and first.attacked_at(0.4) == 0.0
    assert first.attacked_at(max(r, 2.0)) == max(r, 2.0)


def test_bracket_is_a_cut(record) -> None:
    """At r the certified line begins above the certified radius, the attacked one at the margin."""
    r = record.question.r
    for one, row in zip(input_bands(record), (record.rows[0], record.rows[-1]), strict=True):
        assert one.certified_at(row["certified"]) <= r < one.certified_at(row["certified"] * 1.001)
        margin = row["margin_upper_unconstrained"]
        assert one.attacked_at(margin) >= r > one.attacked_at(margin * 0.999)


@pytest.mark.parametrize("width", [760, 358])
def test_band_is_drawn_in_page(record, width) -> None:
    svg = band(record, width)
    assert 'class="shares proved"' in svg and 'class="shares free"' in svg
    assert svg.count('class="limit"') == 1 and "nan" not in svg and "inf" not in svg
    page = render(record)
    assert page.index("The band:") < page.index("Each column is one input")


def test_band_needs_its_columns(make_record) -> None:
    assert band(make_record(4)) == ""


def test_band_without_certificates(record) -> None:
    nothing = {**dict.fromkeys(CERTIFIED), "certified": None}
    rows = [{**row, **nothing} for row in record.rows]
    svg = band(record.model_copy(update={"rows": rows}))
    assert 'class="shares proved"' not in svg and "nothing certified" in svg
