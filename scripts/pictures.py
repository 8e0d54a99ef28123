"""Take the pictures of the documentation from what the current code makes.

    python scripts/pictures.py                # all; needs playwright, Chromium, minutes of a core
    python scripts/pictures.py report board   # some

Every picture carries the command that made what it shows, and the key numbers it shows, as text
within the PNG: a slow test runs the command of the README's picture again and compares.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustvae.records import Record
from robustvae.report.files import read

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "img"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
REPORT = "robustvae audit digits-lipschitz-vae --protocol digits-l2-v1"
TUTORIAL = (
    "robustvae audit tutorial_model.py:build --weights vae.pt --data digits "
    "--defense input-noise:stddev=0.1"
)
APP = "robustvae app digits-lipschitz-vae --defense input-noise:stddev=0.25 --r 0.86"
MODELS = ("digits-lipschitz-vae", "digits-vae", "digits-vae-noise")


def key_numbers(record: Record) -> dict[str, str]:
    """The key numbers of a record to three digits, as a picture carries them."""
    return {
        entry.key: f"{float(entry.mean):.3g}"
        for entry in record.summary
        if entry.headline and entry.mean is not None
    }


def run(command: str, out: Path, folder: Path) -> Record:
    """Run an audit and read its record; one that is there already is taken as it is."""
    if not (out / "record.json").is_file():
        words = command.replace("robustvae", f"{sys.executable} -m robustvae", 1).split()
        # 1: a check failed, which is an answer too
        code = subprocess.run([*words, "--out", str(out), "-q"], cwd=folder, check=False).returncode
        if code not in (0, 1):
            raise SystemExit(f"{command} ended with {code}")
    return read(out)


def save(name: str, png: bytes, command: str, numbers: dict[str, str]) -> None:
    """Store a picture in few colors, with what made it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("command", command)
    text.add_text("numbers", json.dumps(numbers, sort_keys=True))
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128)
    picture.save(IMAGES / f"{name}.png", optimize=True, pnginfo=text)


def _page(browser: Any, address: str, width: int = 920, height: int = 900) -> Any:
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.goto(address)
    return opened


def _clip(opened: Any, first: str, last: str) -> bytes:
    """From the top of one element to the bottom of another."""
    top = opened.locator(first).first.bounding_box()["y"]
    box = opened.locator(last).first.bounding_box()
    width = opened.viewport_size["width"]
    area = {"x": 0, "y": max(0, top - 12), "width": width, "height": box["y"] + box["height"] - top}
    area["height"] += 24
    png: bytes = opened.screenshot(full_page=True, clip=area)
    return png


def report(browser: Any, work: Path) -> None:
    """The README's picture: the head of a report and its first figure."""
    out = work / "audits" / "digits-lipschitz-vae"
    record = run(REPORT, out, work)
    opened = _page(browser, (out / "report.html").as_uri())
    save("report", _clip(opened, "header", "figure.chartbox"), REPORT, key_numbers(record))


def tutorial(browser: Any, work: Path) -> None:
    """The pictures of the tutorial."""
    model = ROOT / "examples" / "tutorial_model.py"
    (work / "tutorial_model.py").write_text(model.read_text(encoding="utf-8"), encoding="utf-8")
    if not (work / "vae.pt").is_file():
        subprocess.run([sys.executable, "tutorial_model.py"], cwd=work, check=True)
    record = run(TUTORIAL, work / "out", work)
    opened = _page(browser, (work / "out" / "report.html").as_uri())
    parts = {
        "head": ("header", "figure.chartbox"),
        "todo": ("#todo", "dl.cards"),
        "damage": ("section[aria-labelledby=damage] figure", "section[aria-labelledby=damage]"),
        "gallery": ("#gallery", "section[aria-labelledby=gallery]"),
    }
    for name, (first, last) in parts.items():
        save(f"tutorial-{name}", _clip(opened, first, last), TUTORIAL, key_numbers(record))


def board(browser: Any, work: Path) -> None:
    """The zoo's board, and its table as a page."""
    for name in MODELS:
        run(f"robustvae audit {name} --protocol digits-l2-v1", work / "audits" / name, work)
    from robustvae.report.board import board as write_board
    from robustvae.report.compare import compare
    from robustvae.zoo_table import training_facts

    index = write_board(work / "audits", work / "board", cards=training_facts)
    table = compare([work / "audits" / name for name in MODELS])
    text = (
        "# The zoo's board\n\n"
        "```sh\n# needs two minutes\nmake board\n```\n\n"
        "audits every bundled model under `digits-l2-v1` (40 inputs, seed 0) and writes "
        "`board/index.html`: ranked, sorted by any column, filtered by a word, with a page for "
        "each model: its card, its audits, its attacked inputs, and what `robustvae verify` reads. "
        "Run on 2026-11-30, one thread.\n\n"
        "![Models ranked by one protocol, and robustness against clean error](../img/board.png)\n\n"
        f"{table.to_markdown()}"
    )
    page = ROOT / "docs" / "results" / "board.md"
    # what follows the table was measured apart, and stays
    _, heading, more = page.read_text(encoding="utf-8").partition("\n## Three digits models")
    page.write_text(text.rstrip("\n") + f"\n{heading}{more}", encoding="utf-8")
    opened = _page(browser, index.as_uri(), width=1280)
    save("board", opened.screenshot(full_page=True), "make board", {})


def app(browser: Any, work: Path) -> None:
    """The explorer, served and closed again."""
    import robustvae as rv
    from robustvae.app import Explorer
    from robustvae.app.page import serve

    vae = rv.load("digits-lipschitz-vae")
    defended = rv.Victim(vae, rv.InputNoise(stddev=0.25))
    explorer = Explorer(vae, rv.data.load("digits", split="test"), defended)
    opened = _page(browser, serve(explorer, 0.86, 0, block=False), width=980)
    for step, waited in (
        (None, "#attack img"),
        ("#measure", "#bracket svg.chart"),
        ("#decompose", "#spectrum img"),
    ):
        if step:
            opened.click(step)
        opened.wait_for_selector(waited, timeout=120_000)
    opened.wait_for_timeout(1500)
    save("app", opened.screenshot(full_page=True), APP, {})


PICTURES: dict[str, Callable[[Any, Path], None]] = {
    "report": report,
    "tutorial": tutorial,
    "board": board,
    "app": app,
}


def main(names: list[str]) -> None:
    """Take the pictures of these names, or all."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as running:
        work = Path(os.environ.get("PICTURES_WORK", temporary))
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name in names or list(PICTURES):
            PICTURES[name](browser, work)
            print(f"taken: {name}")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
