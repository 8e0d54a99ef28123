"""The report in a real browser: nothing fetched, nothing cut off, nothing overlapping."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustvae.report import write
from robustvae.report.board import board

pytestmark = pytest.mark.slow

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))

ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("AXE_CORE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
SERIOUS = """() => axe.run(document, {resultTypes: ['violations']}).then(found =>
  found.violations.filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => one.id + ': ' + one.nodes.slice(0, 3).map(node => node.html).join(' | ')))"""

CUT_OFF = """() => {
  const cut = [];
  for (const svg of document.querySelectorAll('svg.chart')) {
    if (svg.getClientRects().length === 0) continue;
    const view = svg.viewBox.baseVal;
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBBox();
      if (box.x < -1 || box.x + box.width > view.width + 1 || box.y + box.height > view.height + 1)
        cut.push(text.textContent);
    }
  }
  return cut;
}"""
OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg.chart')) {
    if (svg.getClientRects().length === 0) continue;
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBBox()]);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const a = boxes[i][1], b = boxes[j][1], slack = 3;
      if (a.x + slack < b.x + b.width && b.x + slack < a.x + a.width &&
          a.y + slack < b.y + b.height && b.y + slack < a.y + a.height)
        found.push(boxes[i][0] + ' | ' + boxes[j][0]);
    }
  }
  return found;
}"""


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("n", [3, 40, 300])
@pytest.mark.parametrize("width", [320, 390, 820, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_window(browser, make_record, tmp_path, n, width, scheme):
    report = write(make_record(n), tmp_path)
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    requests, complaints = [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(report.as_uri())
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert not complaints
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate(CUT_OFF) == []
    assert opened.evaluate(OVERLAPS) == []
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(int(part) for part in ground[4:-1].split(",")) < 3 * 128
    assert dark == (scheme == "dark")
    assert opened.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def serious_findings(browser, url: str, width: int, scheme: str) -> list[str]:
    """What axe-core calls serious or critical."""
    if not AXE.is_file():
        pytest.skip(f"no axe-core at {AXE}: npm install axe-core, or set AXE_CORE")
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    opened = context.new_page()
    opened.goto(url)
    for folded in opened.locator("details").all():
        folded.evaluate("element => { element.open = true }")
    opened.add_script_tag(path=AXE)
    findings: list[str] = opened.evaluate(SERIOUS)
    context.close()
    return findings


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, make_record, tmp_path, width, scheme):
    report = write(make_record(12, requirements=["certified>=0.9"], command="x"), tmp_path)
    assert serious_findings(browser, report.as_uri(), width, scheme) == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_board_fits_and_axe_agrees(browser, make_record, tmp_path, width, scheme):
    for name in ("a", "b"):
        model = {**make_record(8).model.model_dump(), "name": name * 30}
        write(make_record(8, model=model), tmp_path / name)
    index = board(tmp_path, tmp_path / "site")
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    complaints = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(index.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    opened.locator("th button").nth(1).click()
    opened.locator("#filter").fill("aaa")
    assert not complaints
    assert opened.locator("tbody tr:visible").count() == 1
    assert serious_findings(browser, index.as_uri(), width, scheme) == []
    opened.locator("tbody tr:visible a").first.click()
    assert opened.locator("h2", has_text="Card").is_visible() and "/models/" in opened.url
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert serious_findings(browser, opened.url, width, scheme) == []


def test_rows_sort_filter_and_unfold(browser, make_record, tmp_path):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(write(make_record(12), tmp_path).as_uri())
    opened.locator("summary", has_text="rows, one for each input").click()
    table = opened.locator("table.filterable")
    shown = table.locator("thead th:visible")
    assert shown.count() == 12
    opened.locator("#all-columns").check()
    assert shown.count() > 12
    opened.locator("#all-columns").uncheck()
    heads = [head.strip() for head in table.locator("thead th").all_text_contents()]
    column = heads.index("damage")
    table.locator("thead th").nth(column).locator("button").click()
    cells = table.locator(f"tbody tr td:nth-child({column + 1})").all_text_contents()
    numbers = [float(cell) for cell in cells]
    assert numbers == sorted(numbers, reverse=True)
    opened.locator(".filter input").fill("linf inconclusive")
    assert table.locator("tbody tr:visible").count() == 1
    assert opened.locator("[role=status]").first.text_content() == "1 of 24"


def test_picture_leads_to_its_row(browser, make_record, tmp_path):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.goto(write(make_record(4), tmp_path).as_uri())
    link = opened.locator("figure.gallery a").first
    target = link.get_attribute("href")
    link.click()
    assert opened.locator(target).is_visible()


def test_scrolling_tables_show_it(browser, make_record, tmp_path):
    opened = browser.new_page(viewport={"width": 390, "height": 800})
    opened.goto(write(make_record(4), tmp_path).as_uri())
    assert opened.locator(".swipe:visible").count() >= 2
    wide = browser.new_page(viewport={"width": 1280, "height": 800})
    wide.goto((tmp_path / "report.html").as_uri())
    assert wide.locator(".swipe:visible").count() == 0


def test_tables_are_reached_by_keyboard(browser, make_record, tmp_path):
    opened = browser.new_page(viewport={"width": 390, "height": 800})
    opened.goto(write(make_record(), tmp_path).as_uri())
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(30):
        opened.keyboard.press("Tab")
        reached.add(opened.evaluate("document.activeElement.tagName"))
    assert {"A", "DIV", "SUMMARY"} <= reached
    opened.locator("summary", has_text="rows, one for each input").click()
    assert opened.locator("table").last.is_visible()
