"""The README's first Python block runs as it stands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from robustvae.report import read

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.slow
def test_the_first_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float32)  # what a user has; the test's own float64 comes back
    block = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert block is not None
    exec(compile(block[1], "README.md", "exec"), {})
    assert (tmp_path / "out" / "report.html").is_file()


def test_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) < 150


PICTURE = README.parent / "docs" / "img" / "report.png"


def test_picture_carries_the_readmes_command() -> None:
    command = Image.open(PICTURE).text["command"]
    assert f"The picture is `{command}`" in README.read_text("utf-8")


@pytest.mark.parametrize("page", ["gallery.md", "tutorial.md"])
def test_pictures_stand_by_their_commands(page: str) -> None:
    """A picture that carries its command is followed by it, or stands on the page that runs it."""
    text = (README.parent / "docs" / page).read_text("utf-8")
    sections = text.split("\n## ") if page == "gallery.md" else [text]
    commands = []
    for section in sections:
        for name in re.findall(r"\]\((img/[\w-]+\.png)\)", section):
            command = Image.open(README.parent / "docs" / name).text.get("command")
            if command is not None:
                assert re.search(re.escape(command) + r"(`| --out out$)", section, re.M), name
                commands.append(command)
    assert len(commands) >= 4


@pytest.mark.slow
def test_picture_shows_what_its_command_measures(tmp_path) -> None:
    """The numbers that were on the page, against those of the same command by the current code."""
    text = Image.open(PICTURE).text
    command = [sys.executable, "-m", *text["command"].split(), "--out", str(tmp_path), "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    means = {entry.key: entry.mean for entry in read(tmp_path).summary if entry.headline}
    shown = json.loads(text["numbers"])
    assert set(shown) == set(means)
    for key, number in shown.items():
        # three digits, and what another machine's rounding does to an attack
        assert float(means[key]) == pytest.approx(float(number), rel=0.02, abs=2e-3), key
