"""Hostile command lines that are run for real: some of those that scripts/fuzz_cli.py makes."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from robustvae.cli import entry

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_cli.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_cli", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_cli"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_hostile_lines_end_in_our_words(script: ModuleType) -> None:
    assert not script.run_many(60, seed=4)


def endings(script: ModuleType, folder: Path, act, monkeypatch) -> str:
    """The fault of one line that acts so."""
    fresh, outputs = folder / "fresh", folder / "outputs"
    fresh.mkdir()
    outputs.mkdir()
    monkeypatch.setattr(entry, "_call", act)
    child = script.Child([["list"]], fresh, outputs)
    fault = script.fault_of(child.ending())
    child.end()
    return fault


def refuse(_):
    raise KeyError("foreign")


def shout(_):
    print("\x1b[31m", file=sys.stderr)


def wait(_):
    while True:
        pass


def crash(_):
    os.kill(os.getpid(), 9)


def leave(_):
    os._exit(7)


def take(_):
    return 5


@pytest.mark.parametrize(
    ("act", "wanted"),
    [
        (refuse, "internal error"),
        (shout, "control character"),
        (wait, "hang"),
        (crash, "the process ended with -9"),
        (leave, "the process ended with 7"),
        (take, "exit code 5"),
        (lambda _: print("a", file=sys.stderr) or 2, "exit code 2 without a message"),
        (lambda _: print("error: a\nb", file=sys.stderr) or 2, "message of 2 lines"),
        (lambda _: 0, ""),
    ],
)
def test_fault_is_counted(script, act, wanted, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(script, "LONGEST", 0.2)
    begin = time.monotonic()
    fault = endings(script, tmp_path, act, monkeypatch)
    assert fault.startswith(wanted) if wanted else not fault
    assert time.monotonic() - begin < 20
