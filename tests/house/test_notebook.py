"""The notebook runs from its first cell to its last, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[2] / "examples" / "tour.ipynb"


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_notebook_runs_whole(tmp_path: Path) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code")
    script = tmp_path / "tour.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "certified" in done.stdout and (tmp_path / "out" / "report.html").is_file()


def test_notebook_is_stored_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in cells())
    assert len({cell["id"] for cell in cells()}) == len(cells())
    kinds = [cell["cell_type"] for cell in cells()]
    assert kinds[0] == "markdown" and kinds.count("code") >= 8
