"""The published schema describes the records that are written."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest

import robustvae as rv

SCHEMA = json.loads(resources.files("robustvae").joinpath("records.schema.json").read_text())
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
KNOWN = {
    "$schema", "$defs", "$ref", "title", "description", "type", "const", "enum", "anyOf",
    "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip


def problems(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """What is wrong with `value`: the part of JSON Schema that ours uses, and no more."""
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    found: list[str] = []

    def wrong(reason: str) -> None:
        found.append(f"{where}: {reason}")

    if "$ref" in schema:
        found += problems(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], where)
    if "anyOf" in schema and all(problems(value, part, where) for part in schema["anyOf"]):
        wrong(f"{value!r} is none of its kinds")
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        of_kind = any(
            isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
            for kind in kinds
        )
        if not of_kind:
            wrong(f"{value!r} is not {kinds}")
    if "const" in schema and value != schema["const"]:
        wrong(f"{value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        wrong(f"{value!r} is not among {schema['enum']}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        wrong(f"{value[:40]!r} does not match")
    if isinstance(value, int | float) and not isinstance(value, bool):
        outside = (
            value < schema.get("minimum", value)
            or value > schema.get("maximum", value)
            or ("exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"])
            or ("exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"])
        )
        if outside:
            wrong(f"{value} is out of range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            wrong(f"{len(value)} items")
        for i, item in enumerate(value):
            found += problems(item, schema.get("items", {}), f"{where}[{i}]")
    if isinstance(value, dict):
        found += [f"{where}: no {key}" for key in schema.get("required", ()) if key not in value]
        rest = schema.get("additionalProperties", {})
        for key, part in value.items():
            inner = schema.get("properties", {}).get(key, rest)
            if inner is False:
                wrong(f"{key} is unknown")
            else:
                found += problems(part, inner, f"{where}.{key}")
    return found


@pytest.mark.parametrize("certified", [True, False])
def test_a_record_is_what_the_schema_says(make_record, certified):
    written = json.loads(make_record(certified=certified, margins=certified).to_json())
    assert not problems(written, SCHEMA)


def test_a_real_record_is_what_the_schema_says():
    images = rv.data.load("digits", split="test")
    plan = {"inputs": 2, "attacks": [{"radius": 0.5, "steps": 2, "restarts": 1}]}
    audited = rv.audit(rv.Victim(rv.load("digits-lipschitz-vae")), images, plan=plan, seed=0)
    assert not problems(json.loads(audited.to_json()), SCHEMA)


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
    ],
)
def test_the_schema_refuses(make_record, path, value):
    written = json.loads(make_record(2).to_json())
    place = written
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert problems(written, SCHEMA)


def test_with_the_usual_validator(make_record):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft202012Validator
    validator.check_schema(SCHEMA)
    validator(SCHEMA).validate(json.loads(make_record().to_json()))
