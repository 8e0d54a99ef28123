"""The documentation's commands: all are commands, and those that need nothing are run (slow).

A line that ends in a comment beginning with "needs" wants data, weights or a browser; pages under
`NEED_DATA` speak of big data sets throughout.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustvae.cli import parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Trained models of big data sets, hours of training, or files that only their reader has.
NEED_DATA = {
    "results",
    "api",
    "reference",
    "choose.md",
    "zoo.md",
    "own-module.md",
    "extend.md",
    "theory.md",
}
WANTED = re.compile(
    r"\b(MODEL|NAME|FOLDER|FAMILY|RECIPE|RECORD|PATH|DIR|owner/name)\b|<\w+>|\.\.\."
)
SHELLS = {"sh", "bash", "shell", "console"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(robustvae [^`]+)`")


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """Lines that call robustvae, and whether the page shows them as lines to run."""
    text = page.read_text(encoding="utf-8")
    shell = [block for kind, block in _FENCE.findall(text) if kind in SHELLS]
    for block in shell:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("robustvae "):
                yield line, True
    for line in _INLINE.findall(text):
        yield line, False


def words(line: str) -> list[str]:
    """The words of a line, without its comment."""
    return shlex.split(line, comments=True)[1:]


ALL = [(page, line, shown) for page in PAGES for line, shown in commands(page)]


def check_options(line: str) -> None:
    """Raise where a line names a command or an option that does not exist."""
    name, *rest = [word.rstrip(".,;:") for word in words(line)] or ["--help"]
    if name.startswith("-") or WANTED.search(name):
        return
    assert name in parser.command_names(), line
    command: Any = parser._Commands(name="x").get_command(None, name)
    inner = getattr(command, "commands", None)
    if inner and rest and rest[0] in inner:
        command, rest = inner[rest[0]], rest[1:]
    known = {option for one in command.params for option in getattr(one, "opts", [])} | {"--help"}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, (line, word)


@pytest.mark.parametrize("page", sorted({page for page, *_ in ALL}), ids=lambda page: page.stem)
def test_shown_commands_exist(page: Path) -> None:
    for _, line, _ in (entry for entry in ALL if entry[0] == page):
        check_options(line)


def to_run() -> list[tuple[Path, list[str]]]:
    """Each page's lines that need nothing of a reader, in order."""
    pages: dict[Path, list[str]] = {}
    for page, line, shown in ALL:
        parts = set(page.relative_to(ROOT).parts)
        comment = line.partition("#")[2].strip()
        needs_nothing = not parts & NEED_DATA and not comment.startswith("needs")
        if shown and needs_nothing and not WANTED.search(line.partition("#")[0]):
            pages.setdefault(page, []).append(line)
    return list(pages.items())


@pytest.mark.slow
@pytest.mark.parametrize(("page", "lines"), to_run(), ids=lambda value: getattr(value, "stem", ""))
def test_shown_commands_run(page: Path, lines: list[str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples" / "tutorial_model.py", tmp_path)
    if any("vae.pt" in line for line in lines):
        made = [sys.executable, "tutorial_model.py"]
        subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-m", "robustvae", *words(line)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        # 1 is an answer, too: evidence that is not sound, a requirement that is not met
        assert done.returncode in (0, 1), (line, done.stderr)
        assert "Traceback" not in done.stderr, line


def test_generated_pages_name_every_command() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))
    page = script["command_line"]()
    for name in parser.command_names():
        assert f"## robustvae {name}\n" in page
    assert "| `--require` |" in page
    table = script["api_map"]("attacks")
    assert "| `Attack` | Goal x search x ball" in table
    assert "__" not in table


def test_reference_pages_begin_with_map() -> None:
    """As the script writes it: a page that a change has made stale is written by `make docs`."""
    script = runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))
    for page, text in script["pages"]().items():
        if page.parent.name == "api":
            assert text.index("<!-- map: begin -->") < text.index("::: robustvae."), page.name
            assert "__" not in text.split("<!-- map: end -->")[0], page.name


def test_workflow_calls_commands_that_exist() -> None:
    text = (ROOT / "examples" / "ci" / "robustness.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["audit"]["steps"]
    lines = [step["run"] for step in steps if "run" in step and "robustvae " in step["run"]]
    lines = [line for line in lines if line.startswith("robustvae")]
    assert len(lines) == 2
    for line in lines:
        check_options(line)
