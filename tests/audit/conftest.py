"""What the tests of audits share: the bundled digits, and plans of seconds."""

from __future__ import annotations

import pytest

import robustvae as rv

TINY = {
    "inputs": 6,
    "shard": 3,
    "draws": 100,
    "margins": {"steps": 8, "restarts": 1},
    "gallery": 2,
    "probes": 2,
    "gradient_free": 10,
    "longer": 2,
    "attacks": [
        {"search": {"name": "projected-ascent", "steps": 8, "restarts": 2}, "radius": 0.5},
        {
            "goal": "latent-shift",
            "search": {"name": "projected-ascent", "steps": 5, "restarts": 1},
            "norm": "linf",
            "radius": 0.1,
        },
    ],
}
ONE = {**TINY, "inputs": 2, "gradient_free": 0, "longer": 1, "probes": 0, "margins": None}
ONE["attacks"] = TINY["attacks"][:1]


@pytest.fixture(scope="session")
def digits():
    return rv.data.load("digits", split="test")


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture
def one():
    """One attack on two inputs, and nothing that takes time."""
    return ONE
