"""The report: one file that is whole in itself, escapes what it shows, and never overclaims."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import robustvae as rv
from robustvae.errors import StorageError
from robustvae.records import Record
from robustvae.records.audit import row_sha256
from robustvae.records.parts import GalleryItem
from robustvae.report import drawing, page, reading
from robustvae.report.advice import advise
from robustvae.report.failures import failing_rows

FETCHING = {
    "src", "srcset", "href", "xlink:href", "action", "formaction", "data", "poster", "background",
    "cite", "manifest", "ping",
}  # fmt: skip
BESIDE = {"record.json", "adversarials.safetensors", "manifest.json"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} </style> &amp;"


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def html(make_record):
    return page.render(make_record())


def test_nothing_fetched_and_no_link_leaves(html):
    parsed = Parsed(html)
    anchors = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in FETCHING:
                inside = value.startswith("data:image/png;base64,") or value[1:] in anchors
                inside |= tag == "a" and value in BESIDE
                assert inside, (tag, name, value[:60])
    assert len(parsed.all("script")) == 1 and not parsed.all("script")[0]
    assert "http://" not in html and "https://" not in html
    assert "@import" not in html and "url(" not in html


def test_every_picture_has_words(html):
    parsed = Parsed(html)
    assert len(parsed.all("img")) == 18
    assert all(len(image["alt"]) > 10 for image in parsed.all("img"))
    assert "undefended reconstruction: input 7, label 1" in html
    assert len(parsed.all("svg")) == 12
    for svg in parsed.all("svg"):
        assert svg["role"] == "img" and len(svg["aria-label"]) > 20


def test_structure_for_keyboard_and_reader(html):
    parsed = Parsed(html)
    assert parsed.all("html")[0]["lang"] == "en"
    assert len(parsed.all("h1")) == len(parsed.all("main")) == 1
    assert all(box["tabindex"] == "0" for box in parsed.all("div") if box.get("role") == "region")
    assert all("scope" in head for head in parsed.all("th"))
    assert {name for name, _ in parsed.tags} >= {"details", "summary", "nav", "figcaption"}
    assert "prefers-color-scheme:dark" in html and "@media print" in html


FIXED = {"inf", "ok", "l2", "linf", "centered", "mean", "text", "number", "count", "flag", "share"}
FIXED |= {"attack", "input", "none", "down", "up", "near", "higher", "lower", "audit", "evidence"}
FIXED |= {"worst", "median", "best", ""}
KEYS = {"id", "key", "png", "sha256", "hashes", "kind", "victim", "norm"}


def poisoned(value):
    """Every piece of text within `value` made hostile that may be any text."""
    if isinstance(value, str):
        return value if value in FIXED else HOSTILE
    if isinstance(value, list):
        return [poisoned(part) for part in value]
    if isinstance(value, dict):
        return {key: part if key in KEYS else poisoned(part) for key, part in value.items()}
    return value


def test_hostile_names_are_shown(make_record):
    content = json.loads(make_record(4).to_json())
    hostile = {**poisoned(content), "columns": content["columns"], "plan": {HOSTILE: HOSTILE}}
    hostile["environment"] = {HOSTILE: HOSTILE}
    hostile["victims"][0]["name"] = content["victims"][0]["name"]
    for before, after in zip(content["rows"], hostile["rows"], strict=True):
        after["attack"] = before["attack"] + HOSTILE
    for item in hostile["gallery"]:
        item["attack"] = content["gallery"][0]["attack"] + HOSTILE
    hostile["hashes"] = [row_sha256(row) for row in hostile["rows"]]
    tame = {**content, "plan": {"a": "b"}, "environment": {"a": "b"}}
    pages = [page.render(Record.model_validate(each)) for each in (hostile, tame)]
    # where a long name may break, there is a `wbr`
    tags = [[tag for tag, _ in Parsed(text).tags if tag != "wbr"] for text in pages]
    assert tags[0] == tags[1]
    bad = pages[0]
    assert bad.count("<script") == 1 and "&lt;script&gt;alert(1)" in bad
    assert "{{ 7*7 }}" in bad and "onerror" not in {name for _, a in Parsed(bad).tags for name in a}


def test_numbers_round_towards_safety(make_record):
    numbers = {"low": 0.2678, "high": 0.3012, "n": 40, "unit": "px"}
    record = make_record(
        summary=[
            {"key": "certified", "label": "c", "mean": 0.28899, "rounding": "down"}
            | {"headline": "Certified radius", **numbers},
            {"key": "margin_upper_box", "label": "a", "mean": 0.7291, "rounding": "up"}
            | {"headline": "Attacked", "n": 40, "unit": "px"},
        ]
    )
    text = " ".join(Parsed(page.render(record)).text.split())
    assert "Certified radius 0.288 (0.267 to 0.302) px, n = 40" in text
    assert "Attacked 0.730 px, n = 40" in text
    first = record.rows[0]
    rounding = {column.id: column.rounding for column in record.columns}
    shown = [
        page._cell(first[key], key, rounding) for key in ("certified", "margin_upper_unconstrained")
    ]
    assert float(shown[0]) <= first["certified"]
    assert float(shown[1]) >= first["margin_upper_unconstrained"]


def test_verdict_comes_first(html):
    parsed = Parsed(html)
    text = " ".join(parsed.text.split())
    assert text.index("Useful; not evidence of robustness") < text.index("Key numbers")


def test_changed_rows_are_told(make_record):
    record = make_record(2)
    record.rows[0]["damage"] = 99.0
    assert "1 of 4 rows are not those that were measured" in page.render(record)


def test_what_went_wrong_stands_at_top(html, make_record):
    warning = "1 of 3 checks did not pass"
    assert warning in html and html.index(warning) < html.index("<main")
    assert "did not pass" not in page.render(make_record(checks=[]))


def test_empty_record_still_makes_page(make_record):
    empty = {name: [] for name in ("rows", "summary", "checks", "proved", "estimated", "not_tried")}
    html = page.render(make_record(2, gallery=0, **empty, protocol=[], references=[], timing={}))
    assert "No margins were measured" in html and "Nothing in this audit is proved." in html


def test_long_tables_name_the_cut(make_record):
    html = page.render(make_record(320))
    assert f"{640 - page.MOST_ROWS} more rows stand in the files" in html
    assert html.count("<tr>") < page.MOST_ROWS + 40


def test_equal_records_equal_bytes(make_record, tmp_path):
    record = Record.from_json(make_record().to_json())
    first, second = (rv.report.write(record, tmp_path / name) for name in "ab")
    again = rv.report.read(tmp_path / "a")
    assert page.render(again) == first.read_text(encoding="utf-8")
    for name in ("report.html", "record.json", "rows.parquet", "rows.jsonl", "manifest.json"):
        one, other = first.with_name(name), second.with_name(name)
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()


def test_rows_as_parquet(make_record, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    record = make_record()
    (tmp_path / "rows.jsonl").write_text("of another audit")
    rv.report.write(record, tmp_path)
    assert not (tmp_path / "rows.jsonl").exists()
    rows = parquet.read_table(tmp_path / "rows.parquet")
    assert rows.schema.metadata[b"record"].decode() == record.id
    assert record.id in (tmp_path / "report.html").read_text(encoding="utf-8")
    table = rows.to_pylist()
    wanted = [{k: float("inf") if v == "inf" else v for k, v in row.items()} for row in record.rows]
    assert table == wanted


def test_rows_as_jsonl_without_pyarrow(make_record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    record = make_record()
    rv.report.write(record, tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    wanted = [{**row, "record": record.id} for row in record.rows]
    assert [json.loads(line) for line in lines] == wanted
    assert not (tmp_path / "rows.parquet").exists()


def test_a_folder_that_cannot_be(make_record, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        rv.report.write(make_record(2), tmp_path / "file")


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_full_disk_leaves_whole_old_audit(make_record, tmp_path, monkeypatch, fails_at):
    rv.report.write(make_record(3), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        rv.report.write(make_record(4), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_needs_no_torch(make_record, tmp_path):
    """The package's front door imports torch; behind it the report does not."""
    here = Path(rv.__file__).parent
    script = f"""
import sys, types
package = types.ModuleType("robustvae"); package.__path__ = [{str(here)!r}]
sys.modules["robustvae"] = package
from robustvae.records import Record
from robustvae.records.audit import row_sha256
from robustvae.report import table, write
write(Record.from_json(open({str(tmp_path / "r.json")!r}).read()), {str(tmp_path / "out")!r})
assert "torch" not in sys.modules
"""
    (tmp_path / "r.json").write_text(make_record(3).to_json())
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "out" / "report.html").is_file()


def test_colors_are_legible():
    """Contrast of text and marks on their ground, in light and in dark [WCAG 2.2: 4.5 and 3]."""

    def luminance(color):
        digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    schemes = re.findall(r":root\{([^}]*)\}", drawing.PALETTE)
    assert len(schemes) == 3
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+):(#\w+)", scheme))
        for ground in ("page", "card"):
            behind = luminance(colors[ground])
            for name, least in (
                *((text, 4.5) for text in ("ink", "soft", "proved", "bad", "defended")),
                *((mark, 3.0) for mark in ("free", "box", "guess", "noise")),
            ):
                light, dark = sorted((luminance(colors[name]), behind), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= least, (name, ground, colors[name])


def test_policy_allows_only_our_script(html):
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(
        m["content"] for m in Parsed(html).all("meta") if "default-src" in m.get("content", "")
    )
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_readable_without_script(make_record):
    html = page.render(make_record(3))
    body = html[: html.index("<script>")]
    assert "<button" not in body and " hidden" not in body
    assert body.count('id="row-') == 6


def test_twelve_columns_at_first(make_record):
    record = make_record(4)
    names = [column.id for column in reading.columns(record)]
    few = page.default_columns(record, names)
    assert len(few) == 12 and len(names) > 12
    assert {"input", "attack", "damage", "certified"} <= few and "victim" not in few
    heads = re.findall(r'<th scope="col" class="([^"]*)" title', page.render(record))
    assert sum("extra" not in head for head in heads) == 12


def test_requirements_stand_at_the_top(make_record):
    record = make_record(4, requirements=["certified>=0.1", "gradient_seen"], command="robustvae x")
    html = page.render(record)
    top = html[: html.index("<main")]
    assert "robustvae x" in top
    assert "Required: certified&gt;=0.1" in top and "✗ not met" in top
    assert "Do not ship this as it is" in html
    assert "Made in Python" in page.render(make_record(4))


def test_failing_rows_are_worst_first(make_record):
    record = make_record(40)
    failures = failing_rows(record)
    for failure in failures:
        row = failure.row
        assert row["probability_high"] <= 0.5 or row["status"] == "inconclusive"
    harms = [failure.row["damage"] / failure.row["size"] for failure in failures]
    assert harms == sorted(harms, reverse=True)
    broken = [row for row in record.rows if row["probability_high"] <= 0.5]
    assert {failure.place for failure in failures} >= {record.rows.index(row) for row in broken}


def test_changed_row_is_a_failing_row(make_record):
    record = make_record(3)
    rows = [dict(row) for row in record.rows]
    rows[2]["damage"] = 99.0
    changed = record.model_copy(update={"rows": rows})
    assert [f.place for f in failing_rows(changed) if "changed" in f.reason] == [2]


def test_signals_are_drawn_as_lines(make_record):
    panel = {"shape": [2, 5], "values": [[0, 1, 0.5, 0, 1], [1, 1, 1, 0, 0]], "low": 0, "high": 1}
    bars = {"shape": [1, 4], "values": [[-0.1, 0.1, 0.0, 0.2]], "low": -0.2, "high": 0.2}
    item = {
        "input": 7,
        "attack": "a",
        "place": "worst",
        "panels": {"input": panel, "difference": bars},
    }
    html = page.render(
        make_record(3, gallery=0).model_copy(update={"gallery": [GalleryItem(**item)]})
    )
    assert "Worst: input 7" in html
    svg = next(s for s in Parsed(html).all("svg") if s["aria-label"].startswith("input: input 7"))
    assert svg["width"] == "160"
    assert html.count('class="shares proved" d="M0.0') >= 1


def test_advice_follows_from_the_record(make_record):
    texts = [item.text for item in advise(make_record(40))]
    assert texts[0].startswith("Do not quote these numbers yet")
    assert "gradient_seen" in texts[0] and "verify FOLDER" in advise(make_record(40))[-1].command
    verdict = {"useful": True, "sound": True, "visible": False, "sentences": ["Useful."]}
    record = make_record(40, certified=False, verdict=verdict, question=make_question(clean=2.0))
    advice = advise(record)
    commands = " | ".join(item.command for item in advice)
    assert "--r 3.0" in commands and "input-noise:stddev=0.25" in commands
    assert "robustvae advise" in commands and "--defense robust-posterior" in commands


def test_advice_repeats_the_audits_own_options(make_record):
    """A command that leaves out weights and data is none that a reader can run."""
    verdict = {"useful": True, "sound": True, "visible": False, "sentences": ["Useful."]}
    made = "robustvae audit model.py:build --weights 'my vae.pt' --data parts --minutes 2 --r 1.2"
    record = make_record(8, certified=False, verdict=verdict, question=make_question(clean=2.0))
    record = record.model_copy(update={"command": made})
    commands = [item.command for item in advise(record)]
    assert made.replace("--r 1.2", "--r 3.0") in commands
    assert f"{made} --defense input-noise:stddev=0.25" in commands
    unsound = make_record(40).model_copy(update={"command": made})
    check = "robustvae check model.py:build --weights 'my vae.pt' --data parts"
    assert advise(unsound)[0].command == check


def test_advice_names_possible_defenses_only(make_record):
    """A search in the posterior asks for a likelihood."""
    record = make_record(8, verdict={"useful": True, "sound": True, "sentences": ["Useful."]})
    facts = record.model.model_copy(update={"likelihood": None})
    commands = [item.command for item in advise(record.model_copy(update={"model": facts}))]
    assert not any("robust-posterior" in command for command in commands)
    assert len(commands) == len(set(commands))


def make_question(clean):
    question = {"norm": "l2", "r": 1.2, "m": 0.5, "displacement": "centered"}
    return {**question, "clean_error": clean}


def test_defense_advice_states_effect_and_price(make_record):
    victims = [
        {"name": "undefended", "defense": "PosteriorMean()", "effect": 3.0},
        {"name": "d", "defense": "D()", "defended": True, "effect": 1.0, "price": 0.5},
    ]
    check = {"victim": "d", "value": "", "sentence": "s", "subject": "note"}
    for passed, start in ((True, "d saves more"), (False, "Leave d out")):
        checks = [{"id": "defense_worth_its_price", "passed": passed, **check}]
        verdict = {"useful": True, "sound": True, "sentences": ["Useful."]}
        record = make_record(3, victims=victims, checks=checks, verdict=verdict)
        text = next(item.text for item in advise(record) if item.text.startswith(start))
        assert "effect 1.00, price without attack 0.500; undefended effect 3.00" in text


def test_words_name_drawn_things_only(make_record):
    """Where nothing is certified there is no blue to speak of."""
    record = make_record(6)
    assert "the blue bar" in page.render(record)
    certified = {key: None for key in record.rows[0] if key.startswith("certified")}
    text = page.render(
        record.model_copy(update={"rows": [{**r, **certified} for r in record.rows]})
    )
    assert "the blue " not in text and "below it is not known" in text
