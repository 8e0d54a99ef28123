"""The generated schema describes the records that are written, and refuses others."""

from __future__ import annotations

import json
import re

import pytest

from robustvae.errors import DataError
from robustvae.records import Record
from robustvae.records.audit import schema


@pytest.mark.parametrize("certified", [True, False])
def test_record_survives_json(make_record, certified):
    record = make_record(certified=certified, margins=certified)
    assert Record.from_json(record.to_json()).rows == record.rows


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["kind"], "poem"),
        (["seed"], -1),
        (["model", "sha256"], "f00"),
        (["rows", 0, "certified"], "much"),
        (["rows", 0, "probability"], 1.5),
        (["rows", 0, "extra"], 1),
        (["rows", 0, "box"], 1),
        (["rows", 0, "attack"], 2.5),
        (["gallery", 0, "panels", "input", "png"], "<script>"),
        (["surprise"], 1),
        (["rows"], 3),
        (["gallery"], [{"a": 1}]),
        (["gallery", 0, "panels"], []),
        (["summary", 0, "key"], None),
        (["question", "m"], 1),
        (["question", "r"], 0),
        (["victims"], []),
        (["verdict", "sentences"], []),
        (["proved"], "all of it"),
        (["environment"], None),
        (["title"], 1),
        (["hashes"], []),
    ],
)
def test_wrong_parts_are_named(make_record, path, value):
    written = json.loads(make_record(2).to_json())
    place = written
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(DataError, match="not a record: record") as caught:
        Record.from_json(json.dumps(written))
    words = str(caught.value)
    assert str(path[0]) in words and "\n" not in words and len(words) < 400


def test_every_part_is_asked_for(make_record):
    written = json.loads(make_record(2).to_json())
    for place, part in ((written, "question"), (written["rows"][0], "attack")):
        kept = place.pop(part)
        with pytest.raises(DataError, match=rf"not a record: record.*{part} is missing"):
            Record.from_json(json.dumps(written))
        place[part] = kept
    with pytest.raises(DataError, match="wanted a record of format 2, got 1"):
        Record.from_json(json.dumps({**written, "format": 1, "surprise": 1}))


def test_usual_validator_agrees(make_record):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema())
    validator(schema()).validate(json.loads(make_record().to_json()))


def test_records_are_frozen(make_record):
    record = make_record(2)
    with pytest.raises(ValueError, match="frozen"):
        record.title = "another"
    assert re.fullmatch(r"Record of .+\n.+\n.+", repr(record))
    assert "<strong>Record of" in record._repr_html_()
