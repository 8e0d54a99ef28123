"""Parts of a result on disk, each under a name made of what it is, and with its own hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

from robustvae.arguments import checked, checked_fields
from robustvae.errors import StorageError
from robustvae.records.files import write_text
from robustvae.records.values import plain

SCHEMA = 1
"""Of the files; one of another number is left alone."""

_FILE = re.compile(r"[0-9a-f]{32}\.(?:part|state)\.json")


@checked_fields
@final
class Store:
    """Finished parts of a job, and what unfinished ones have done so far.

    A file's name follows from job and part, so that parts of other jobs lie beside them. A file
    that is missing, damaged, changed or of another schema is computed again; `damaged` names those
    that were there and not whole.

    Args:
        folder: Where they lie; None keeps nothing.
        key: Of the job: all that decides its numbers.
        resume: Whether what lies there is read.

    Examples:
        >>> import tempfile
        >>> from robustvae.records import Store
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Store(folder, "my job").write("first", {"value": 1})
        ...     Store(folder, "my job").read("first"), Store(folder, "other").read("first")
        ({'value': 1}, None)
    """

    def __init__(self, folder: str | Path | None, key: str, resume: bool = True) -> None:
        self.folder = None if folder is None else Path(folder)
        self.key = key
        self.resume = resume
        self.damaged: list[str] = []

    def path(self, name: str, kind: str = "part") -> Path | None:
        """Where the part of that name, or its state, lies."""
        if self.folder is None:
            return None
        text = f"{SCHEMA}/{self.key}/{name}"
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.{kind}.json"

    def read(self, name: str, kind: str = "part") -> Any:
        """The content of a whole file of a part, or None."""
        path = self.path(name, kind)
        if not self.resume or path is None or not path.is_file():
            return None
        try:
            file = json.loads(path.read_text(encoding="utf-8"))
            content = file["content"]
            is_whole = (file["schema"], file["job"], file["task"], file["sha256"]) == (
                *(SCHEMA, self.key, name),
                _digest(content),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
            is_whole = False
        if not is_whole:
            self.damaged.append(path.name)
            return None
        return content

    def write(self, name: str, content: Any, kind: str = "part") -> None:
        """Keep a part or its state; a part replaces the state.

        Raises:
            StorageError: The file cannot be written.
        """
        path = self.path(name, kind)
        if path is None:
            return
        content = plain(content)
        file = {"schema": SCHEMA, "job": self.key, "task": name, "sha256": _digest(content)}
        write_text(path, json.dumps({**file, "content": content}))
        if kind == "part":
            self.discard_state(name)

    def keep(self, name: str, content: Any, tell: Callable[[str], None]) -> None:
        """Write a part; where that fails, the work goes on and nothing more is kept.

        Args:
            name: Of the part.
            content: The part.
            tell: Told in a sentence that it failed.
        """
        try:
            self.write(name, content)
        except StorageError as error:
            tell(f"parts are no longer kept: {error}")
            self.folder = None

    def discard_state(self, name: str) -> None:
        """Remove what an unfinished part kept of itself."""
        state = self.path(name, "state")
        if state is not None:
            with contextlib.suppress(OSError):
                state.unlink(missing_ok=True)


@checked()
def forget_parts(folder: str | Path) -> None:
    """Remove the parts that jobs kept in `folder`, and the folder if nothing else is in it.

    Examples:
        >>> import tempfile, pathlib
        >>> from robustvae.records import forget_parts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mine = pathlib.Path(folder) / "mine.json"
        ...     _ = mine.write_text("{}")
        ...     forget_parts(folder)
        ...     mine.exists()
        True
    """
    folder = Path(folder)
    for path in folder.glob("*.json"):
        if _FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
