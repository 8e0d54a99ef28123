"""Finished parts of an item on disk, so that a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

from robustvae.errors import DataError
from robustvae.records import write_text

RESULT, IDENTITY = "result.json", "identity.json"


class Unfinished(Exception):
    """The time given is over; what was finished is stored."""


def digest(content: Any) -> str:
    """SHA-256 of plain values, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@final
class Store:
    """Parts of one run by key and weights: what is on disk is read, the rest is computed.

    Every part is a file of its own, written beside its place and renamed into it, whose name is the
    digest of what the part depends on. So a killed run leaves whole parts only, other weights
    never meet the parts of these, and two processes may fill one store.

    Args:
        folder: Of the run; None stores nothing.
        minutes: After these no new part is begun.

    Raises:
        DataError: A file's content is not what was written.
        Unfinished: A part is missing and the time is over.

    Examples:
        >>> from experiments.harness import Store
        >>> Store(None)("a part", lambda: {"score": [1.0, 2.0]})
        {'score': [1.0, 2.0]}
    """

    def __init__(self, folder: Path | None, minutes: float = math.inf) -> None:
        self.folder = folder
        self.end = time.monotonic() + 60 * minutes
        self.parts: dict[str, Any] = {}
        self.reads = 0  # parts that were on disk

    def __call__(self, key: str, compute: Callable[[], Any], weights: Sequence[str] = ()) -> Any:
        """Return the part `key` of these weights, in JSON's own types, computed if missing."""
        name = digest([key, *weights])
        if name in self.parts:
            return self.parts[name]
        path = None if self.folder is None else self.folder / f"{name[:32]}.json"
        if path is not None and path.is_file():
            text = json.loads(path.read_text("utf-8"))
            if text["sha256"] != digest(text["values"]) or text["key"] != key:
                raise DataError(f"{path} is not what was written: remove it and run again")
            self.parts[name] = text["values"]
            self.reads += 1
            return self.parts[name]
        if time.monotonic() > self.end:
            raise Unfinished(key)
        # Through JSON even when nothing is stored: a resumed run sees the same numbers.
        values = json.loads(json.dumps(compute(), default=lambda tensor: tensor.tolist()))
        if path is not None:
            part = {"key": key, "weights": list(weights), "values": values}
            write_text(path, json.dumps(part | {"sha256": digest(values)}) + "\n")
        self.parts[name] = values
        return values

    def done(self) -> int:
        """Return how many parts are on disk."""
        if self.folder is None:
            return len(self.parts)
        names = {path.name for path in self.folder.glob("*.json")}
        return len(names - {RESULT, IDENTITY})
