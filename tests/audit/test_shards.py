"""Rows do not depend on how an audit is cut into shards, also where all share one change."""

from __future__ import annotations

import pytest

import robustvae as rv

QUIET = {
    "inputs": 7,
    "draws": 20,
    "margins": None,
    "certificates": False,
    "geometry": False,
    "gallery": 0,
    "probes": 0,
    "gradient_free": 20,
    "longer": 2,
}
UNIVERSAL = {"name": "universal", "steps": 6, "restarts": 2}


@pytest.mark.parametrize(
    "search", [UNIVERSAL, {"name": "through", "search": UNIVERSAL, "gradient": "transfer"}]
)
def test_universal_rows_keep_in_shards(search, digits):
    victim = rv.Victim(rv.load("digits-vae").double(), rv.PosteriorSample())

    def rows(shard):
        plan = {**QUIET, "shard": shard, "attacks": [{"search": search, "radius": 1.0}]}
        return rv.audit(victim, digits, plan=plan, question={"r": 1.0}).rows

    whole = rows(20)
    for shard in (1, 5):
        for row, other in zip(rows(shard), whole, strict=True):
            assert row["attack"] == other["attack"] and row["input"] == other["input"]
            for key in ("score", "size", "damage"):
                assert row[key] == pytest.approx(other[key], rel=1e-6), key
