"""Hostile values in combinations: 500 of the calls that scripts/fuzz.py makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hostile_calls_end_in_our_errors(script: ModuleType) -> None:
    assert not script.call_many(500, seed=0)


def test_foreign_error_is_counted(script: ModuleType) -> None:
    def fail(x: object) -> None:
        raise KeyError(x)

    _, fault = script.attempt(0, 0, {"fail": (fail, lambda: {"x": 1}, ())}, ["fail"])
    assert fault.startswith("KeyError")


def test_hang_is_counted(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(x: object) -> None:
        while True:
            pass

    monkeypatch.setattr(script, "LONGEST", 0.05)
    _, fault = script.attempt(0, 0, {"wait": (wait, lambda: {"x": 1}, ())}, ["wait"])
    assert fault.startswith("hang")
