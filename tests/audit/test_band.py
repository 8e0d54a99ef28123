"""Measures of the band: certified below attacked, along r and along the size."""

import json
import math

import pytest

import robustvae as rv
from robustvae import registry
from robustvae.audit.measures.band import TIMES
from robustvae.records import Case, Record
from robustvae.records.along import ATTACKED, CERTIFIED
from robustvae.report.band import input_bands


@pytest.mark.parametrize(
    ("name", "defense", "kind"),
    [
        ("digits-lipschitz-vae", None, "deterministic"),
        ("digits-vae-noise", "input-noise:stddev=0.25", "probabilistic"),
    ],
)
def test_certified_side_lies_above_attacked(name, defense, kind):
    vae = rv.load(name)
    victim = rv.Victim(vae) if defense is None else rv.Victim(vae, defense=defense)
    record = rv.audit(
        victim,
        rv.data.load("digits", split="test"),
        plan={"base": "smoke", "inputs": 2, "probes": 0, "gallery": 0},
        question={"r": 1.2},
    )
    row = record.rows[0]
    radii = [row[key] for key in TIMES]
    assert row["certified_along_kind"] == kind and radii == sorted(radii) and radii[-1] > 0
    assert 0 < row["tolerance_at_25"] <= row["tolerance_attacked"] * 1.2
    for one in input_bands(record):
        assert one.certified and one.attacked
        for size, tolerance in one.attacked:
            assert tolerance <= one.certified_at(size) or math.isinf(one.certified_at(size))


def test_plain_model_has_no_certified_side():
    record = rv.audit(
        rv.load("digits-vae"),
        rv.data.load("digits", split="test"),
        plan={"base": "smoke", "inputs": 2, "probes": 0, "gallery": 0, "certificates": False},
        question={"r": 1.2},
    )
    assert all(row[key] is None for row in record.rows for key in TIMES)
    assert any("band-certified" in omission.reason for omission in record.left_out)
    assert all(not one.certified and one.attacked for one in input_bands(record))


def _rows(count, **changes):
    """Rows of a linear victim: a change of size s breaks tolerance 2 s, certified r / 2."""
    r = 1.0
    certified = {column: 0.45 * times * r for column, times in CERTIFIED.items()}
    attacked = {column: 2 * share * 0.8 for column, share in ATTACKED.items()}
    base = {"norm": "l2", "size": 0.8, **certified, **attacked}
    return [{"input": k, **base, **(changes if k == 0 else {})} for k in range(count)]


def _judged(rows, random=False):
    case = Case("plain", rows, {}, {"r": 1.0, "norm": "l2"}, random=random)
    return registry.build("check", "band_certified_below_attacked")(case)


@pytest.mark.parametrize(
    "fault",
    [
        {"certified_at_200": 1.7, "tolerance_attacked": 2.1},  # a radius past the attacked size
        {"certified_at_50": 0.7},  # 0.6 breaks 1.2 already
        {"tolerance_at_25": 0.55},  # 0.2 breaks what is certified up to 0.225
    ],
)
def test_planted_crossing_is_named(fault):
    assert _judged(_rows(8)).passed
    assert not _judged(_rows(8, **fault)).passed
    assert not _judged(_rows(8, **fault), random=True).passed
    # one input of forty is what chance may do to a bound of 95 % confidence
    assert _judged(_rows(40, **fault), random=True).passed
    assert not _judged(_rows(40, **fault)).passed


def test_other_norm_is_not_compared():
    rows = [{**row, "norm": "linf"} for row in _rows(3, certified_at_50=9.0)]
    assert _judged(rows).passed is None


def test_changed_record_fails_along_r():
    """A certificate made up beside r is found when a record is read, though r itself holds."""
    record = rv.audit(
        rv.load("digits-lipschitz-vae"),
        rv.data.load("digits", split="test"),
        plan={"base": "smoke", "inputs": 2, "probes": 0, "gallery": 0},
        question={"r": 1.2},
    )
    result = {one.id: one.passed for one in record.checks}
    assert result["band_certified_below_attacked"]
    content = json.loads(record.to_json())
    for row in content["rows"]:
        row["certified_at_50"] = 9.0
    read = Record.from_json(json.dumps(content))
    assert "band_certified_below_attacked" in read.verdict.first
    assert "certified_below_attacked" not in read.verdict.failed
