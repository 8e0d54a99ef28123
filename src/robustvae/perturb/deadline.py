"""A time at which searches stop between two steps and return the best point so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import final

_LEAST = 3  # steps that are made whatever the time: with fewer the result means nothing


@final
@dataclass
class Deadline:
    """When searches stop, and whether one has.

    Args:
        end: In seconds of `time.monotonic`.
        fewest: Steps of the shortest search that was stopped; None where none was.
    """

    end: float
    fewest: int | None = None

    def passed(self, steps: int) -> bool:
        """Whether a search that has made so many steps stops now."""
        if steps < _LEAST or time.monotonic() < self.end:
            return False
        self.fewest = steps if self.fewest is None else min(steps, self.fewest)
        return True


_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextlib.contextmanager
def until(end: float) -> Iterator[Deadline]:
    """Within: searches of this thread stop at `end`, in seconds of `time.monotonic`.

    What is found then depends on the machine's speed, so only whoever counts minutes asks for it.

    Examples:
        >>> import time
        >>> from robustvae.perturb.deadline import is_over, until
        >>> with until(time.monotonic() - 1) as deadline:
        ...     is_over(1), is_over(5), deadline.fewest
        (False, True, 5)
        >>> is_over(5)
        False
    """
    deadline = Deadline(end)
    token = _CURRENT.set(deadline)
    try:
        yield deadline
    finally:
        _CURRENT.reset(token)


def is_over(steps: int) -> bool:
    """Whether a search that has made so many steps must stop."""
    deadline = _CURRENT.get()
    return deadline is not None and deadline.passed(steps)
