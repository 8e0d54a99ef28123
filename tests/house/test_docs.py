"""The documentation's commands: all are commands, and each is run (slow) or says what it needs.

A line in a block of shell is run by a test unless its reader sees why not: a comment that begins
with "needs" ends the line, or opens the block.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustvae.cli import parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference" / "command-line.md"
# lines that are no command of this library, and what runs them
OTHERS = {
    "make audit": "the gate",
    "make test": "the gate",
    "pip install -c constraints.txt .": "the gate",
    "python tutorial_model.py": "test_shown_commands_run",
}
WANTED = re.compile(
    r"\b(MODEL|NAME|FOLDER|FAMILY|RECIPE|RECORD|PATH|DIR|owner/name)\b|<\w+>|\.\.\."
)
SHELLS = {"sh", "bash", "shell", "console"}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(robustvae [^`]+)`")


@dataclass(frozen=True)
class Line:
    """A line of a page, and whether its reader sees what it needs."""

    page: Path
    text: str
    is_marked: bool

    @property
    def command(self) -> str:
        """Without its comment."""
        return self.text.partition(" #")[0].strip()


def text_of(page: Path) -> str:
    """A page; the reference as the commands say it, since a change may have made the page stale."""
    if page == REFERENCE:
        return runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))["command_line"]()
    return page.read_text(encoding="utf-8")


def shown(page: Path) -> Iterator[Line]:
    """The lines of a page's blocks of shell, in order."""
    for kind, block in _FENCE.findall(text_of(page)):
        if kind in SHELLS:
            lines = block.replace("\\\n", " ").splitlines()
            opens = lines[0].startswith("# needs")
            for line in lines[opens:]:
                if line.strip():
                    yield Line(page, line, opens or " # needs" in line)


def words(line: str) -> list[str]:
    """The words of a line, without its comment."""
    return shlex.split(line, comments=True)[1:]


SHOWN = [line for page in PAGES for line in shown(page)]
INLINE = [(page, line) for page in PAGES for line in _INLINE.findall(text_of(page))]


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


CALLS = [(line.page, line.text) for line in SHOWN if line.text.startswith("robustvae ")]


@pytest.mark.parametrize(
    "page", sorted({page for page, _ in CALLS + INLINE}), ids=lambda page: page.stem
)
def test_shown_commands_exist(page: Path) -> None:
    for _, line in (entry for entry in CALLS + INLINE if entry[0] == page):
        check_options(line)


def test_every_command_runs_or_says_needs() -> None:
    lines = [line for line in SHOWN if not line.is_marked and line.command not in OTHERS]
    wrong = [
        f"{line.page.relative_to(ROOT)}: {line.text}"
        for line in lines
        if not line.text.startswith("robustvae ") or WANTED.search(line.command)
    ]
    assert not wrong, "no test can run these: end the line or open the block with '# needs ...'"


def to_run() -> list[tuple[Path, list[str]]]:
    """Each page's lines that say no need, in order."""
    pages: dict[Path, list[str]] = {}
    for line in SHOWN:
        if not line.is_marked and line.text.startswith("robustvae "):
            pages.setdefault(line.page, []).append(line.text)
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
