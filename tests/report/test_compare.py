"""Several records side by side: equal questions only, differences over shared inputs."""

import csv
import io
import json
import math
import os
import re
import subprocess

import pytest

import robustvae as rv
from robustvae.errors import ConfigError, DataError, DtypeError, StorageError
from robustvae.records import read_manifest
from robustvae.records.audit import row_sha256
from robustvae.records.parts import Omission
from robustvae.report.board import board
from robustvae.report.cards import key_numbers
from robustvae.report.compare import compare
from robustvae.report.pareto import draw_pareto, draw_paretos, pareto
from robustvae.report.tables import Cell, Heading, Row, Table


def named(record, name, **changes):
    if "rows" in changes:
        changes["hashes"] = [row_sha256(row) for row in changes["rows"]]
    model = record.model.model_copy(update={"name": name})
    return record.model_copy(update={"model": model, "title": f"{name} on digits", **changes})


def asked(record, **changes):
    return record.model_copy(update={"question": record.question.model_copy(update=changes)})


@pytest.fixture
def pair(make_record):
    """Two audits of the same inputs; the second moves every damage by exactly 0.5."""
    first = make_record(12)
    rows = [{**row, "damage": row["damage"] + 0.5} for row in first.rows]
    entries = [
        entry.model_copy(update={"mean": entry.mean + 0.5}) if entry.key == "damage" else entry
        for entry in first.summary
    ]
    second = named(first, "other", rows=rows, summary=entries)
    return named(first, "one"), second


def test_differences_are_over_shared_inputs(pair):
    table = compare(pair)
    gap = table.differences[0].cells["damage"]
    assert math.isclose(gap.mean, 0.5, rel_tol=1e-9) and gap.n == 12
    assert gap.high - gap.low < 1e-9  # the spread of the inputs cancels
    one, two = (row.cells["damage"] for row in table.rows)
    assert math.isclose(two.mean - one.mean, 0.5, rel_tol=1e-9)


def test_other_inputs_are_not_paired(pair):
    """Two tensors have inputs of the same numbers; their hashes say that they are others."""
    one, two = (
        record.model_copy(update={"data": record.data.model_copy(update={"sha256": digest * 64})})
        for record, digest in zip(pair, "ab", strict=True)
    )
    assert not compare([one, two]).differences
    assert compare([one, one.model_copy(update={"title": "again"})]).differences


def test_number_of_defended_victims_is_shown(pair):
    first = pair[0]
    victim = first.victims[0].model_copy(update={"name": "smoothed"})
    column = first.columns[0].model_copy(update={"id": "smoothed_radius", "headline": "Radius"})
    entry = first.summary[0].model_copy(
        update={"key": "smoothed_radius / smoothed", "headline": None, "mean": 0.54}
    )
    record = first.model_copy(
        update={
            "victims": [*first.victims, victim],
            "columns": [*first.columns, column],
            "summary": [*first.summary, entry],
        }
    )
    table = compare([record])
    assert "smoothed_radius" in [heading.id for heading in table.headings]
    (row,) = [row for row in table.rows if row.names["victim"] == "smoothed"]
    assert row.cells["smoothed_radius"].mean == 0.54


def test_inputs_record_only_left_out(pair):
    first, second = pair
    rows = [row for row in second.rows if row["input"] != first.rows[0]["input"]]
    gap = compare([first, named(second, "other", rows=rows)]).differences[0].cells["damage"]
    assert gap.n == 11
    moved = [{**row, "input": row["input"] + 1000} for row in second.rows]
    table = compare([first, named(second, "other", rows=moved)])
    assert table.differences == () and "share no inputs" in repr(table)


@pytest.mark.parametrize("change", [{"r": 9.0}, {"m": 0.9}, {"norm": "linf"}, {"box": False}])
def test_unequal_questions_are_refused(pair, change):
    key = next(iter(change))
    with pytest.raises(ConfigError, match=rf"{key} is .* in 'one on digits' and .* --protocol"):
        compare([pair[0], asked(pair[1], **change)])


def test_attacks_of_unequal_size_are_refused(pair):
    one, two = pair
    rows = [{**row, "radius": 2 * row["radius"]} for row in two.rows]
    with pytest.raises(ConfigError, match="headline's attack is l2"):
        compare([one, two.model_copy(update={"rows": rows})])


def test_what_is_no_record_is_refused(pair, tmp_path):
    with pytest.raises(DtypeError, match="records must be"):
        compare(pair[0])
    with pytest.raises(DtypeError, match="each of it a Record"):
        compare([pair[0], 3])
    with pytest.raises(ConfigError, match="at least one"):
        compare([])
    with pytest.raises(DataError):
        compare([tmp_path / "nothing"])


def test_numbers_survive_csv_and_json(pair):
    table = compare(pair)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [row["model"] for row in rows] == ["one", "other"]
    for row, written in zip(table.rows, rows, strict=True):
        assert float(written["damage"]) == row.cells["damage"].mean
    content = json.loads(table.to_json())
    assert content["rows"][1]["damage"] == table.rows[1].cells["damage"].mean
    assert content["differences"][0]["damage_n"] == 12


def test_every_form_escapes_outside_text():
    hostile = "<b>&_%|x\x1b"
    heading = Heading("a", "a", "l2", "down", "higher")
    table = Table("t<i>", (heading,), (Row({"model": hostile}, {"a": Cell(0.19999)}),))
    assert "&lt;b&gt;&amp;_%|x" in table.to_html() and "<b>" not in table.to_html()
    assert r"&lt;b&gt;&amp;_%\|x" in table.to_markdown()
    assert r"<b>\&\_\%|x" in table.to_latex()
    assert "0.199 " in table.to_latex() and "0.2" not in table.to_html()  # floored


def test_latex_has_cell_for_every_heading(pair):
    text = compare(pair).to_latex()
    columns = len(re.search(r"\{(l+r+)\}", text)[1])
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    words = rf"\multicolumn{{{columns}}}{{l}}{{less the first row}} \\"
    assert lines.count(words) == 1 and lines.index(words) == 3
    lines.remove(words)
    assert len(lines) == 4  # heading, two rows, one difference
    assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)


def test_missing_rows_say_why(pair):
    """A defense that no model of a kind can have: one sentence for all of them, in every form."""
    reason = "no likelihood is stated for this model"
    gone = Omission(stage="victim", victim="posterior-mode", reason=reason)
    table = compare([record.model_copy(update={"left_out": [gone]}) for record in pair])
    sentence = f"No row for posterior-mode of one, other: {reason}."
    assert table.notes.count(sentence) == 1
    assert f"% {sentence}\n" in table.to_latex()
    assert sentence in table.to_markdown() and sentence in table.to_html()
    assert not any("No row" in note for note in compare(pair).notes)


def test_infinite_margins_stay_infinite():
    table = Table("t", (Heading("a", "a"),), (Row({"m": "x"}, {"a": Cell(math.inf)}),))
    assert json.loads(table.to_json())["rows"][0]["a"] == "inf"
    assert "∞" in table.to_markdown()


def test_board_ranks_and_links_every_audit(pair, tmp_path):
    audits, site = tmp_path / "audits", tmp_path / "site"
    for number, record in enumerate(pair):
        asked_as = asked(record, protocol="digits-l2-v1")
        rv.report.write(asked_as, audits / str(number))
    rv.report.write(asked(named(pair[0], "alone"), r=9.0), audits / "third")
    (audits / "bad").mkdir()
    (audits / "bad" / "record.json").write_text("{}")
    page = board(audits, site).read_text()
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 6 and all((site / link).is_file() for link in links)
    reports = [link for link in links if link.endswith("report.html")]
    assert len(reports) == 3
    for link in reports:  # a page can be verified as the audit's own folder can
        assert set(read_manifest((site / link).parent).values()) == {True}
    assert page.count("<section>") == 3  # two questions, and what could not be read
    assert "bad: " in page and "no protocol" in page
    assert not re.search(r'(src|href)="https?:', page)


def test_board_has_page_for_each_model(pair, tmp_path):
    """Its card, every audit of it with its rank, the attacked inputs; two audits of one model."""
    audits, site = tmp_path / "audits", tmp_path / "site"
    rv.report.write(asked(pair[0], protocol="digits-l2-v1"), audits / "one")
    rv.report.write(asked(pair[0], r=9.0), audits / "again")
    rv.report.write(asked(pair[1], protocol="digits-l2-v1"), audits / "two")
    (audits / "one" / "adversarials.safetensors").write_bytes(b"stored")
    board(audits, site, cards=lambda model: {"objective": f"ELBO of <{model.name}>"})
    pages = sorted((site / "models").iterdir())
    assert [page.name.rpartition("-")[0] for page in pages] == ["one", "other"]
    page = pages[0].read_text()
    assert "ELBO of &lt;one&gt;" in page
    record = pair[0]
    assert f"{record.model.parameters:,}" in page and str(record.model.sha256) in page
    assert page.count("robustvae verify one-") == 2
    assert "not ranked (no protocol)" in page
    for entry in key_numbers(record):
        assert page.count(f">{entry.label}<") == 2 and f">{entry.shown}<" in page
    assert page.count(" alt=") == 2 * sum(len(item.panels) for item in record.gallery) > 0
    links = re.findall(r'href="([^"]+)"', page)
    assert all((site / "models" / link).is_file() for link in links)
    assert sum(link.endswith("adversarials.safetensors") for link in links) == 1
    assert not re.search(r'(src|href)="https?:', page)


def test_board_searches_deep_folders(pair, tmp_path):
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):  # deeper than Python calls itself
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    rv.report.write(pair[0], tmp_path / "d" / "d" / "audit")
    try:
        assert "report.html" in board(tmp_path, tmp_path / "site").read_text()
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_board_refuses_a_whole_disk(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("robustvae.report.board._FOLDERS", 3)
    for name in ("a", "b"):
        rv.report.write(pair[0], tmp_path / name)
    board(tmp_path, tmp_path / "site")
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="more than 3 folders"):
        board(tmp_path, tmp_path / "site")


def test_board_keeps_a_strangers_page(pair, tmp_path):
    rv.report.write(pair[0], tmp_path / "a")
    site = board(tmp_path / "a", tmp_path / "site")
    board(tmp_path / "a", tmp_path / "site")
    site.write_text("<title>mine</title>")
    with pytest.raises(StorageError, match="would be lost"):
        board(tmp_path / "a", tmp_path / "site")
    assert site.read_text() == "<title>mine</title>"


def test_board_finishes_a_killed_audit(pair, tmp_path):
    rv.report.write(pair[0], tmp_path / "a")
    token = "999999999-0123abcd"
    for path in list((tmp_path / "a").iterdir()):
        path.rename(path.with_name(f".{path.name}.{token}.new"))
    (tmp_path / "a" / f".set.{token}.whole").write_text("[]")
    board(tmp_path, tmp_path / "site")
    assert rv.report.read(tmp_path / "a").summary == pair[0].summary


def test_lopsided_interval_shows_its_ends():
    heading = Heading("p", "p")
    assert Cell(0.088, 0.0, 1.0).text(heading) == "0.0880 (0 to 1.0)"
    assert Cell(0.5, 0.4, 0.6).text(heading) == "0.500 ± 0.10"
    assert Cell(0.5, 0.4, 0.75).text(heading) == "0.500 (0.40 to 0.75)"


def test_board_without_audits_says_so(tmp_path):
    with pytest.raises(DataError, match="robustvae audit"):
        board(tmp_path, tmp_path / "site")


def test_failing_rows_are_listed(pair):
    table = compare(pair)
    models = {record.model.name for record in pair}
    assert table.failures and {failure["model"] for failure in table.failures} <= models
    harms = [failure["damage"] / failure["size"] for failure in table.failures]
    assert harms == sorted(harms, reverse=True)
    assert json.loads(table.to_json())["failures"] == list(table.failures)


def test_pareto_rows_are_beaten_by_none():
    heading = Heading("certified", "c")
    numbers = [(1.0, 0.1), (2.0, 0.5), (3.0, 0.4), (1.5, 0.1)]
    rows = tuple(
        Row({"model": str(i)}, {"error_clean": Cell(error), "certified": Cell(margin)})
        for i, (error, margin) in enumerate(numbers)
    )
    assert pareto(Table("t", (heading,), rows), "certified") == [0, 1]


def with_cost(record, gradients):
    victims = [
        victim.model_copy(
            update={"probes": {**victim.probes, "cost": {"gradients": gradients, "forwards": 1}}}
        )
        for victim in record.victims
    ]
    return record.model_copy(update={"victims": victims})


def test_cost_is_column_where_it_differs(pair):
    assert "cost" not in {heading.id for heading in compare(pair).headings}
    table = compare([with_cost(pair[0], 0), with_cost(pair[1], 50)])
    costs = {row.names["model"]: row.cells["cost"].mean for row in table.rows}
    assert costs == {"one": 1.0, "other": 51.0}
    assert "Cost of reading" in draw_paretos(table) and draw_paretos(compare(pair)) == ""


def test_prices_stand_beside_each_other():
    numbers = {"error_clean": 1.0, "cost": 2.0, "margin_upper_box": 0.5}
    cells = {key: Cell(value) for key, value in numbers.items()}
    worse = {key: Cell(2 * value) for key, value in numbers.items()}
    heading = Heading("margin_upper_box", "attacked")
    table = Table("t", (heading,), (Row({"model": "a"}, cells), Row({"model": "b"}, worse)))
    assert draw_paretos(table).count("<svg") == 3  # clean error and cost within one


def test_picture_tells_best_rows_apart():
    heading = Heading("margin_upper_box", "attacked")
    numbers = [(1.0, 0.1), (201.0, 0.5), (301.0, 0.4), (401.0, math.inf)]
    rows = tuple(
        Row({"model": f"m{i}"}, {"cost": Cell(cost), "margin_upper_box": Cell(margin)})
        for i, (cost, margin) in enumerate(numbers)
    )
    table = Table("t", (heading,), rows)
    assert pareto(table, "margin_upper_box", "cost") == [0, 1]
    drawing = draw_pareto(table, against="cost")
    assert drawing.count('<circle class="proved"') == 3  # two rows and the legend
    assert drawing.count('<circle class="noise"') == 2
    assert "3 m2 0.400 at 301" in drawing and "m3" not in drawing


def test_many_rows_stand_upright(pair):
    many = compare([named(pair[0], f"m{i}") for i in range(6)])
    lines = repr(many).splitlines()
    assert lines[1].split()[:3] == ["model", "victim", "damage"]
    assert [line.split()[0] for line in lines[2:8]] == [f"m{i}" for i in range(6)]
