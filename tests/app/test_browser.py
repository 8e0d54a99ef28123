"""The explorer in a real browser: slider, bracket, spectrum; nothing is asked of other machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import robustvae as rv
from robustvae.app import Explorer

pytestmark = pytest.mark.slow

CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
ROOT = Path(__file__).parents[2]
AXE = Path(os.environ.get("AXE_CORE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
SERIOUS = """() => axe.run(document, {resultTypes: ['violations']}).then(found =>
  found.violations.filter(one => ['serious', 'critical'].includes(one.impact))
    .map(one => one.id + ': ' + one.nodes.slice(0, 3).map(node => node.html).join(' | ')))"""
PATIENCE = 120_000  # milliseconds: a certificate on a busy core


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("gradio", reason="gradio is not installed: the extra app")
    torch.set_default_dtype(torch.float32)
    from robustvae.app.page import serve

    vae = rv.load("digits-lipschitz-vae")
    defended = rv.Victim(vae, rv.InputNoise(stddev=0.25))
    return serve(
        Explorer(vae, rv.data.load("digits", split="test"), defended), 0.86, 0, block=False
    )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.filterwarnings("ignore")
def test_explorer_attacks_certifies_and_decomposes(address, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests = []
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(address)
        opened.wait_for_selector("#attack img", timeout=PATIENCE)
        before = opened.locator("#attack img").nth(1).get_attribute("src")
        assert opened.locator("#attack img").count() == 5
        opened.locator("#size input[type=number]").fill("3")
        opened.locator("#size input[type=number]").press("Enter")
        opened.locator("#size input[type=range]").press("ArrowRight")
        opened.wait_for_function(
            "before => document.querySelectorAll('#attack img')[1].src !== before",
            arg=before,
            timeout=PATIENCE,
        )
        opened.click("#measure")
        opened.wait_for_selector("#bracket svg.chart", timeout=PATIENCE)
        assert "certified" in opened.locator("#bracket svg.chart").get_attribute("aria-label")
        opened.click("#decompose")
        opened.wait_for_selector("#spectrum img", timeout=PATIENCE)
        assert opened.locator("#spectrum img").count() == 6
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert all(
            url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))
            for url in requests
        )
        if AXE.is_file():
            opened.add_script_tag(path=AXE)
            assert opened.evaluate(SERIOUS) == []

        chromium.close()
