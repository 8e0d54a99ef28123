"""Measures of the band: certified below attacked, along r and along the size."""

import math

import pytest

import robustvae as rv
from robustvae.audit.measures.band import TIMES
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
