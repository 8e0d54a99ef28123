"""The project around the package: one version, and nothing of anybody's machine."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import robustvae

ROOT = Path(__file__).parents[2]

# Written so that this file does not find itself.
PRIVATE = re.compile(
    r"""/[w]ork/ | /[r]oot/ | /[h]ome/\w+/ | /[U]sers/\w+/ | [C]:\\\\?Users
    | /[o]pt/pypi | [f]ile:///opt | pypi[.](?:org/simple|python) | files[.]pythonhosted
    | [-]-index-url | [a]rtifactory""",
    re.VERBOSE,
)
BESIDE = re.compile(r"[.][.]/shared")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: no list of the project's files")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in files if path.is_file()]


def test_version_is_top_heading_of_changelog() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading and heading[1] == stated
    assert robustvae.__version__ == metadata.version("robustvae") == stated


def test_extras_pull_in_no_torchvision() -> None:
    """Its registry build is for CUDA; beside a CPU torch it breaks torchmetrics and diffusers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tiers = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = list(itertools.chain.from_iterable(tiers))
    assert not [name for name in wanted if name.startswith("torchvision")]
    assert not [name for name in wanted if re.match(r"torch\W*<", name)]


def test_no_file_names_a_machine() -> None:
    found = []
    for path in tracked():
        text = path.read_text(encoding="utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in PRIVATE.finditer(text)]
        if path != ROOT / ".ci" / "run":
            found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in BESIDE.finditer(text)]
    assert not found


def test_every_family_has_its_page() -> None:
    package = ROOT / "src" / "robustvae"
    files = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    folders = {path.parent.name for path in package.glob("*/__init__.py")} - {"cli"}
    pages = {path.stem for path in (ROOT / "docs" / "api").glob("*.md")}
    assert pages == files | folders
    listed = re.findall(r"api/(\w+)\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(pages)
