"""Code that the documentation shows lives in examples/, and runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# three to ten seconds each
LONG = (
    *("howto_compare", "howto_gate", "howto_share", "howto_track"),
    *("use_anomaly", "use_codec", "use_latent_diffusion", "use_representation", "use_signals"),
)
GROUPS = 2  # processes that import torch, two seconds each; a fork of one runs an example

RUNNER = """
import os, runpy, sys, traceback

import torch
import robustvae as rv

for name in rv.__all__:
    getattr(rv, name)
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        code = 0
        try:
            sys.argv = [path]
            sys.path[0] = os.path.dirname(path)
            name = os.path.basename(path)
            os.dup2(os.open(name + ".out", os.O_WRONLY | os.O_CREAT), 1)
            runpy.run_path(path, run_name="__main__")
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        sys.exit("failed: " + path)
"""


SHORT = [path for path in EXAMPLES if path.stem not in LONG]


@pytest.mark.parametrize(
    "paths",
    [
        *(SHORT[group::GROUPS] for group in range(GROUPS)),
        pytest.param([p for p in EXAMPLES if p not in SHORT], marks=pytest.mark.slow),
    ],
    ids=["some", "others", "long"],
)
def test_every_example_runs(paths: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", RUNNER, *map(str, paths)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in paths:
        assert (tmp_path / f"{path.name}.out").read_text().strip(), path


def test_every_example_is_shown() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))
    shown = set(re.findall(r"examples/(\w+)\.py", pages))
    assert shown == {path.stem for path in EXAMPLES}
