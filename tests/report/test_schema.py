"""The published schema describes the records that are written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

import robustvae as rv
from robustvae.errors import DataError
from robustvae.records import Record

SCHEMA = json.loads(resources.files("robustvae").joinpath("records.schema.json").read_text())
KNOWN = {
    "$schema", "$defs", "$ref", "title", "description", "type", "const", "enum", "anyOf",
    "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip


def schemas(part: Any) -> Iterator[dict[str, Any]]:
    """Every schema within the schema."""
    yield part
    inner = [*part.get("anyOf", ()), *part.get("properties", {}).values()]
    inner += [*part.get("$defs", {}).values(), part.get("items"), part.get("additionalProperties")]
    for schema in inner:
        if isinstance(schema, dict):
            yield from schemas(schema)


def test_the_schema_uses_what_is_checked_and_no_more():
    assert {key for part in schemas(SCHEMA) for key in part} <= KNOWN


@pytest.mark.parametrize("certified", [True, False])
def test_a_record_is_what_the_schema_says(make_record, certified):
    record = make_record(certified=certified, margins=certified)
    assert Record.from_json(record.to_json()).rows == record.rows


def test_a_real_record_is_what_the_schema_says():
    images = rv.data.load("digits", split="test")
    plan = {"inputs": 2, "attacks": [{"radius": 0.5, "steps": 2, "restarts": 1}]}
    audited = rv.audit(rv.Victim(rv.load("digits-lipschitz-vae")), images, plan=plan, seed=0)
    assert Record.from_json(audited.to_json()) == audited


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["kind"], "poem"),
        (["seed"], -1),
        (["seed"], True),
        (["model", "sha256"], "f00"),
        (["model", "image_shape"], [8, 8]),
        (["rows", 0, "certified"], "much"),
        (["rows", 0, "probability"], 1.5),
        (["rows", 0, "m"], 1),
        (["rows", 0, "extra"], []),
        (["gallery", 0, "panels", "input", "png"], "<script>"),
        (["surprise"], 1),
        (["rows"], 3),
        (["gallery"], [{"a": 1}]),
        (["gallery", 0, "panels"], []),
        (["summary", 0, "key"], None),
        (["proved"], "all of it"),
        (["versions"], None),
        (["title"], 1),
    ],
)
def test_the_schema_refuses(make_record, path, value):
    written = json.loads(make_record(2).to_json())
    place = written
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    with pytest.raises(DataError, match=re.escape(f"not a record: record{where}")) as caught:
        Record.from_json(json.dumps(written))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_schema_asks_for_every_part(make_record):
    written = json.loads(make_record(2).to_json())
    for place, part in ((written, "timing"), (written["rows"][0], "attack")):
        kept = place.pop(part)
        with pytest.raises(DataError, match=rf"not a record: record.*\.{part} is missing"):
            Record.from_json(json.dumps(written))
        place[part] = kept
    with pytest.raises(DataError, match="wanted a record of format 1, got 2"):
        Record.from_json(json.dumps({**written, "format": 2, "surprise": 1}))


def test_with_the_usual_validator(make_record):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator
    validator.check_schema(SCHEMA)
    validator(SCHEMA).validate(json.loads(make_record().to_json()))
