"""The ledger is a function of what is printed and stored, and every citation has its place."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from experiments import ledger
from experiments.harness import load_items
from experiments.harness.provenance import ROOT

PAPERS = "Camuto21|Barrett22|Willetts21|Kuzina22|Khan23"
KINDS = {
    "Fig": "Fig",
    "Figs": "Fig",
    "Figure": "Fig",
    "Figures": "Fig",
    "Table": "Table",
    "Tables": "Table",
    "Eq": "Eq",
    "Eqs": "Eq",
    "Theorem": "Theorem",
    "Theorems": "Theorem",
    "Lemma": "Lemma",
    "Lemmas": "Lemma",
    "Definition": "Definition",
    "Definitions": "Definition",
    "Algorithm": "Algorithm",
    "section": "section",
    "sections": "section",
    "appendix": "appendix",
    "Appendix": "appendix",
}
NAME = r"[A-F](?:\.\d+)?|\d+(?:\.\d+)*"
CITED = re.compile(
    rf"\b({'|'.join(KINDS)})\.?\s+((?:{NAME})[a-z]?(?:(?:-| and )(?:{NAME}|[a-z])[a-z]?\b)*)"
)


def cited():
    """File, paper, kind and name of everything that is cited in the source and the docs."""
    paths = [*(ROOT / "src").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    paths += [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for path in paths:
        text = path.read_text("utf-8")
        for start in re.finditer(rf"\[({PAPERS})(?:\]\s+|, )", text):
            rest = re.split(r"[;(|\[\]\"`]|\n\n|\. [A-Z]", text[start.end() : start.end() + 80])[0]
            rest = re.sub(r"\s+", " ", rest)
            for kind, names in CITED.findall(rest):
                for name in re.findall(NAME, names):
                    yield path.relative_to(ROOT), start[1], KINDS[kind], name


def test_every_citation_has_its_place():
    places, found = ledger.places(), list(cited())
    assert len(found) > 60 and len({paper for _, paper, _, _ in found}) == 5
    wrong = [
        f"{path}: [{paper}] {kind} {name}"
        for path, paper, kind, name in found
        if name not in places[paper].get(kind, ())
    ]
    assert not wrong


def test_reader_of_citations_reads():
    text = "Fig. 9c-d and 7; "
    ((kind, names),) = CITED.findall(text)
    assert kind == "Fig" and re.findall(NAME, names) == ["9", "7"]
    ((kind, names),) = CITED.findall("Eq. 63-66")
    assert re.findall(NAME, names) == ["63", "66"]


def test_ledger_is_what_results_say():
    stored = ledger.read()
    built = ledger.build()
    assert built == stored, "run `python -m experiments ledger --write`"
    assert ledger.LEDGER.read_text("utf-8") == stored.to_json()
    for path, text in ledger.pages(stored).items():
        assert path.read_text("utf-8") == text, (
            f"{path}: run `python -m experiments ledger --write`"
        )


def test_page_carries_verdict_picture():
    figure = ledger.read().figures[0]
    text = ledger.with_figures("# Title\n\nText.\n", figure.page, [figure])
    assert text.startswith("# Title\n\n") and text.endswith("\n\nText.\n")
    assert (
        f"**{figure.verdict}**" in text and figure.picture in text and "[Camuto21] Fig. 1" in text
    )
    assert ledger.with_figures(text, figure.page, [figure]) == text
    assert ledger.with_figures(text, figure.page, []) == "# Title\n\nText.\n"


def test_printed_cell_figure_stands():
    stored = ledger.read()
    assert len(stored.cells) == len({cell.key for cell in stored.cells}) == 298
    assert len(stored.figures) == len({figure.key for figure in stored.figures}) == 51
    papers = Counter(figure.key.split("/")[0] for figure in stored.figures)
    assert papers["kuzina2022"] == 21 and papers["khan2023"] == 9
    assert sum(stored.sums()["all"].values()) == 298


def test_verdicts_follow_from_numbers():
    for cell in ledger.read().cells:
        if cell.verdict == "agrees":
            assert cell.ours is not None and (cell.z is None or abs(cell.z) <= 2), cell.key
        if cell.verdict.startswith("off"):
            assert cell.ours is not None and (cell.z is None or abs(cell.z) > 2), cell.key
        if cell.verdict in ("off, cause measured", "impossible here", "contradicts itself"):
            assert cell.why, cell.key


def test_figures_name_items_and_pages_exist():
    items = load_items()
    for figure in ledger.read().figures:
        assert not figure.item or figure.item in items, figure.key
        assert not figure.picture or (ROOT / "docs" / "img" / figure.picture).is_file(), figure.key
        assert not figure.page or (ledger.RESULTS / figure.page).is_file(), figure.key
        if figure.verdict not in ("not run", "cells"):
            assert figure.why, figure.key


def test_prose_cites_keys_that_exist():
    keys = {cell.key for cell in ledger.read().cells}
    text = "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"`((?:kuzina2022|willetts2021)/(?:table|fig|text)-?\d*/[^`]+)`", text))
    assert named and named <= keys
    with pytest.raises(KeyError):
        ledger.read().cell("kuzina2022/table-2/mnist/vae/ms-ssim 0.3")
