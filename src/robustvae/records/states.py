"""What unfinished work has done of itself, written from time to time: a kill costs a minute of it.

The one place that says how often. The tasks of audits put their finished steps here; the loops of
searches, chains and draws say where they stand (`robustvae.loops`); a training writes its own
state as often.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, final

from robustvae.arguments import checked
from robustvae.errors import DtypeError, StorageError, check_number, check_type
from robustvae.records.store import Store

SAVE_EVERY = 60.0
"""Seconds between two saves of what unfinished work has done of itself."""

_WITHIN = " within"


@final
class SavedState:
    """What a part of a job has finished of itself, written to a store when some time has gone by.

    Args:
        store: Where to.
        name: Of the part.
        every: Seconds between two saves; None for `SAVE_EVERY`.
        clock: Seconds that only grow; None for the machine's.

    Raises:
        DtypeError: An argument of another type.
        RangeError: Fewer seconds than 0.

    Examples:
        >>> import tempfile
        >>> from robustvae.records import SavedState, Store
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     SavedState(Store(folder, "my job"), "part", every=0).put("first step", 1)
        ...     SavedState(Store(folder, "my job"), "part").get("first step")
        1
    """

    def __init__(
        self,
        store: Store,
        name: str,
        every: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_type(store, "store", Store)
        check_type(name, "name", str)
        if every is not None:
            check_number(every, "every", least=0.0)
        if not (clock is None or callable(clock)):
            raise DtypeError(f"clock must be a function, got {type(clock).__name__}")
        self.store, self.name = store, name
        self.every = SAVE_EVERY if every is None else every
        # looked up now, not when the module was read
        self.clock = time.monotonic if clock is None else clock
        content = store.read(name, "state")
        self.steps: dict[str, Any] = content if isinstance(content, dict) else {}
        self.last = self.clock()

    def get(self, step: str) -> Any:
        """The content of a finished step, or None."""
        return self.steps.get(step)

    def put(self, step: str, content: Any) -> None:
        """Take the content of a finished step."""
        self.steps[step] = content
        if self.is_due:
            self.save()

    @property
    def is_due(self) -> bool:
        """Whether the last save is long enough ago."""
        return self.clock() - self.last >= self.every

    def save(self) -> None:
        """Write all finished steps."""
        with contextlib.suppress(StorageError):  # it is optional: the work goes on without
            self.store.write(self.name, self.steps, "state")
        self.last = self.clock()  # afterwards: what takes long to write is written less often


class Entry(Protocol):
    """The state of a loop."""

    def packed(self) -> Any:
        """It in JSON's own types; None where there is nothing to keep."""


@final
class Scope:
    """The loops of one step of a part: where those that run stand, and what finished ones gave.

    Args:
        state: Which they are saved with.
        step: The step.
    """

    def __init__(self, state: SavedState, step: str) -> None:
        self.state, self.step = state, f"{step}{_WITHIN}"
        content = state.get(self.step)
        self.entries: dict[str, Any] = dict(content) if isinstance(content, dict) else {}
        self.active: dict[str, Entry] = {}
        self.opened = 0

    def forget(self, prefix: str, but: str = "//") -> None:
        """Drop the loops whose key begins so, unless it begins with more of it."""
        for key in list(self.entries):
            if key.startswith(prefix) and not key.startswith(but):
                del self.entries[key]

    def save_if_due(self) -> None:
        """Save where all loops stand, if the last save is long enough ago."""
        if not self.state.is_due:
            return
        packed = {key: entry.packed() for key, entry in self.active.items()}
        self.entries |= {key: content for key, content in packed.items() if content is not None}
        self.state.steps[self.step] = {
            key: entry.packed() if hasattr(entry, "packed") else entry
            for key, entry in self.entries.items()
        }
        self.state.save()


_CURRENT: ContextVar[Scope | None] = ContextVar("scope", default=None)


@checked()
@contextlib.contextmanager
def saving(state: Any, step: str) -> Iterator[None]:
    """Within: the loops of this thread save where they stand, as part of a step that is under way.

    At the end what they saved is dropped: the caller has the result of the step.

    Args:
        state: A `SavedState`; with any other, or where nothing is kept, loops save nothing.
        step: Of the state; no other step under way has its name.
    """
    is_kept = isinstance(state, SavedState) and state.store.folder is not None
    token = _CURRENT.set(Scope(state, step) if is_kept else None)
    try:
        yield
        if is_kept:
            state.steps.pop(f"{step}{_WITHIN}", None)
    finally:
        _CURRENT.reset(token)


def current_scope() -> Scope | None:
    """The scope that loops of this thread save in, or None."""
    return _CURRENT.get()
