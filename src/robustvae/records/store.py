"""Parts of a result on disk, each under a name made of what it is, and with its own hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from robustvae.arguments import checked, checked_fields
from robustvae.errors import StorageError
from robustvae.records.files import write_text
from robustvae.records.pieces import failure, pieces
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
def in_ranges(
    store: Store,
    count: int,
    size: int,
    compute: Callable[[range], Any],
    tell: Callable[[str], None],
    progress: Callable[[int, int, str], None] | None = None,
    about: str = "",
) -> list[Any]:
    """What `compute` gives for all ranges of inputs; those that a store holds are not made again.

    A range that fails is computed input by input, and where memory runs out in halves, as `pieces`
    does it: an input that fails alone has a `Failure` for its part.

    Args:
        store: Where parts are read from and kept, and which inputs failed.
        count: How many inputs there are.
        size: How many a range has.
        compute: The part of some inputs.
        tell: Told that a stopped run goes on, that a part was damaged, or cannot be kept.
        progress: Called with inputs done, inputs in all and the range under way.
        about: What tells these ranges from others of the same store.

    Returns:
        The parts, in JSON's own types and in the order of the inputs; a range has several where
        it could not be computed as a whole.

    Raises:
        Exception: What every input of the first range raises: the call is wrong, not an input.

    Examples:
        >>> from robustvae.records import Store, in_ranges
        >>> in_ranges(Store(None, ""), 5, 2, lambda rows: sum(rows), print)
        [1, 5, 4]
        >>> in_ranges(Store(None, ""), 3, 3, lambda rows: [(7, 8)[row] for row in rows], print)
        [[7], [8], Failure(row=2, status='failed: IndexError: tuple index out of range')]
    """
    ranges = [range(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def name(rows: range) -> str:
        return f"{about}{rows.start}-{rows.stop}"

    # of a range that could not be computed as a whole: how it was cut, and what failed
    cuts = {rows: store.read(f"{name(rows)} cut") for rows in ranges}
    parts = {rows: store.read(name(rows)) for rows in ranges if cuts[rows] is None}
    for damaged in store.damaged:
        tell(f"{damaged} was damaged and is computed again")
    finished = sum(one is not None for one in (*cuts.values(), *parts.values()))
    if finished:
        tell(
            f"going on with {finished} of {len(ranges)} parts that this run left in {store.folder}"
        )

    def part_of(rows: range) -> Any:
        part = parts[rows] if parts.get(rows) is not None else store.read(name(rows))
        if part is None:
            part = plain(compute(rows))
            store.keep(name(rows), part, tell)
        return part

    def piecewise(rows: range) -> list[tuple[range, Any]]:
        """The pieces of a range, each with its part or its failure."""
        if progress is not None:
            progress(rows.start, count, f"inputs {rows.start + 1} to {rows.stop}")
        try:
            results = pieces(
                len(rows), lambda places: part_of(rows[places[0] : places[-1] + 1]), tell
            )
        except Exception as error:  # a stranger's code may raise anything
            if rows == ranges[0]:
                raise
            results = [((place,), error) for place in range(len(rows))]
        return [
            (
                rows[places[0] : places[-1] + 1],
                Failure(rows[places[0]], failure(part))
                if isinstance(part, BaseException)
                else part,
            )
            for places, part in results
        ]

    def of_range(rows: range) -> list[Any]:
        cut = cuts[rows]
        if cut is not None:
            return [
                part_of(range(begin, end)) if status is None else Failure(begin, status)
                for begin, end, status in cut
            ]
        if parts[rows] is not None:
            return [parts[rows]]
        results = piecewise(rows)
        if len(results) > 1 or isinstance(results[0][1], Failure):
            entries = [
                (piece.start, piece.stop, part.status if isinstance(part, Failure) else None)
                for piece, part in results
            ]
            store.keep(f"{name(rows)} cut", entries, tell)
        return [part for _, part in results]

    return [part for rows in ranges for part in of_range(rows)]


@final
@dataclass(frozen=True)
class Failure:
    """In place of the part of an input that fails by itself.

    Attributes:
        row: Which input.
        status: Why, as `failure` says it.
    """

    row: int
    status: str


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
