"""Results as frozen dataclasses of plain values, to and from JSON, and files written whole.

Nothing here imports torch: whatever reads a record needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from robustvae.display import three_lines
from robustvae.errors import DataError, StorageError, check_type

FORMAT = 1


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A number with its confidence interval, from samples or attacks.

    Warning:
        An estimate says nothing about what was not tried. It is never a certificate.

    Attributes:
        value: The estimate, (B,).
        low: Lower end of the interval, (B,).
        high: Upper end of the interval, (B,).
        confidence: Of the interval, in (0, 1).
        box: Whether perturbed images had to stay in the pixel range; None where it plays no part.
        status: A word per input, or empty where there is nothing to say.

    Examples:
        >>> import robustvae as rv
        >>> rv.Estimate(value=0.5, low=0.4, high=0.6, confidence=0.95, box=None).high
        0.6
    """

    value: Any
    low: Any
    high: Any
    confidence: float
    box: bool | None
    status: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Record:
    """All that a report may read: one audit, in plain Python values.

    Everything but `timing` is decided by the model, the data, the plan and the seed.

    Attributes:
        title: What was audited, in a few words.
        model: name, kind, architecture, latent, image_shape, likelihood, parameters, sha256.
        data: name, split, inputs, available, and the sha256 of the images audited.
        defense: The victim's defense, as text.
        plan: The complete plan.
        seed: The seed of every generator.
        versions: Of the library, Python, torch and numpy.
        protocol: Sentences that say what was done.
        rows: One flat dict per input and attack.
        summary: key, label, mean, stderr, n, unit of each headline number.
        checks: name, passed, value and meaning of each check on the evidence.
        gallery: Inputs with their pictures, PNG in base64.
        proved: What the certificates prove, in sentences.
        estimated: What was estimated only.
        not_tried: What nobody tried.
        references: The works that the audit rests on.
        timing: created (UTC) and seconds.
        format: Version of this layout.
        kind: "audit".

    Examples:
        >>> import robustvae as rv
        >>> images = rv.data.load("digits", split="test")
        >>> plan = {"inputs": 2, "attacks": [{"radius": 0.5, "steps": 2, "restarts": 1}]}
        >>> record = rv.audit(rv.Victim(rv.load("digits-vae")), images, plan=plan, seed=0)
        >>> rv.Record.from_json(record.to_json()) == record
        True
    """

    title: str
    model: dict[str, Any]
    data: dict[str, Any]
    defense: str
    plan: dict[str, Any]
    seed: int
    versions: dict[str, str]
    protocol: list[str]
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    gallery: list[dict[str, Any]]
    proved: list[str]
    estimated: list[str]
    not_tried: list[str]
    references: list[str]
    timing: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    kind: str = "audit"

    def to_json(self) -> str:
        """This record as JSON text, keys sorted; an infinity is the string "inf"."""
        return json.dumps(plain(dataclasses.asdict(self)), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record back.

        Raises:
            DtypeError: Not text.
            DataError: Not JSON, not a record, of another format, or not what
                `records.schema.json` says; the first thing wrong is named.
        """
        check_type(text, "text", str)
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DataError(f"not a record: no valid JSON ({error})") from None
        if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
            raise DataError(f"wanted a record of format {FORMAT}, got {content['format']!r}")
        for problem in _problems(content, _schema(), "record"):
            raise DataError(f"not a record: {problem}")
        return cls(**content)


@functools.cache
def _schema() -> dict[str, Any]:
    text = Path(__file__).with_name("records.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _problems(value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
    """What is wrong with `value`, by the keywords of JSON Schema that ours uses."""

    def wrong(reason: str) -> str:
        return f"{where} is {json.dumps(value)[:60]}, {reason}"

    if "$ref" in schema:
        yield from _problems(value, _schema()["$defs"][schema["$ref"].rpartition("/")[2]], where)
    if "anyOf" in schema and all(any(_problems(value, kind, where)) for kind in schema["anyOf"]):
        yield wrong("none of its kinds")
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is_a(kind, value) for kind in kinds):
        yield wrong(f"not {' or '.join(kinds)}")
    allowed = [schema["const"]] if "const" in schema else schema.get("enum", [value])
    if value not in allowed:
        yield wrong(f"not among {allowed}")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield wrong(f"not of the form {schema['pattern']}")
    if _is_a("number", value):
        inside = schema.get("minimum", value) <= value <= schema.get("maximum", value)
        above = "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"]
        below = "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"]
        if not (inside and above and below):
            yield wrong("out of range")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield wrong(f"which has {len(value)} items")
        for i, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), f"{where}[{i}]")
    if isinstance(value, dict):
        for key in schema.get("required", []):
            if key not in value:
                yield f"{where}.{key} is missing"
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            if inner is False:
                yield f"{where}.{key} is unknown"
            else:
                yield from _problems(item, inner, f"{where}.{key}")


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def _is_a(kind: str, value: Any) -> bool:
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def plain(value: Any) -> Any:
    """`value` in JSON's own types: tensors as lists, infinities as "inf", a NaN as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file whole or not at all: beside its place, then renamed into it.

    Args:
        path: The file; missing folders above it are made.
        content: All of it.

    Raises:
        StorageError: The disk is full, the folder cannot be written to, or the like.

    Examples:
        >>> import tempfile, pathlib
        >>> from robustvae.records import write_text
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(pathlib.Path(folder) / "a" / "b.txt", "whole").read_text()
        'whole'
    """
    write_files({path: content})
    return Path(path)


def write_files(contents: Mapping[str | Path, bytes]) -> None:
    """Write files that belong together: all beside their places, then all renamed into them.

    Args:
        contents: All of each file, by path; missing folders above are made.

    Raises:
        StorageError: As of `write_bytes`; then no file has changed.
    """
    beside: list[tuple[str, str | Path]] = []
    path: str | Path = ""
    try:
        for path, content in contents.items():
            folder, name = Path(path).parent, Path(path).name
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            beside.append((temporary, path))
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(temporary, 0o644)
        for temporary, path in beside:
            os.replace(temporary, path)
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        for temporary, _ in beside:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise StorageError(
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}"
        ) from None


def check_folder(folder: str | Path) -> None:
    """Raise `StorageError` unless files can be written into `folder`, made where it is missing.

    For what takes long and writes last.
    """
    write_bytes(Path(folder) / ".writable", b"").unlink()


def write_text(path: str | Path, content: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, content.encode("utf-8"))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
