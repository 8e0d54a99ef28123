"""The report in a real browser: nothing fetched, nothing cut off, nothing overlapping."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustvae.report import write

pytestmark = pytest.mark.slow

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))

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
def test_it_fits(browser, make_record, tmp_path, n, width, scheme):
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
