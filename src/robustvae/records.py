"""Results as frozen dataclasses of plain values, to and from JSON, and files written whole.

Nothing here imports torch: whatever reads a record needs none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from robustvae.errors import DataError, StorageError, check_type

FORMAT = 1


@final
@dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its confidence interval, from samples or attacks.

    Warning:
        An estimate says nothing about what was not tried. It is never a certificate.

    Attributes:
        value: The estimate, (B,).
        low: Lower end of the interval, (B,).
        high: Upper end of the interval, (B,).
        confidence: Of the interval, in (0, 1).
        boxed: Whether perturbed images had to stay in the pixel range; None where it plays no part.
        status: A word per input, or empty where there is nothing to say.

    Examples:
        >>> import robustvae as rv
        >>> rv.Estimate(value=0.5, low=0.4, high=0.6, confidence=0.95, boxed=None).high
        0.6
    """

    value: Any
    low: Any
    high: Any
    confidence: float
    boxed: bool | None
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
        defence: The victim's defence, as text.
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
    defence: str
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
            DataError: Not JSON, not a record, or of another format.
        """
        check_type(text, "text", str)
        try:
            content = json.loads(text)
        except ValueError as error:
            raise DataError(f"not a record: no valid JSON ({error})") from None
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(content, dict) or set(content) != fields:
            raise DataError(f"not a record: wanted a JSON object with {', '.join(sorted(fields))}")
        if content["format"] != FORMAT or content["kind"] != "audit":
            raise DataError(
                f"wanted an audit record of format {FORMAT}, "
                f"got {content['kind']!r} of format {content['format']!r}"
            )
        return cls(**content)


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
