"""How far an audit is, with the time that remains, as plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO, final

_MOMENT = 15.0  # seconds that nobody minds waiting without a word
Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is under way)."""


@final
class Lines:
    """Prints a line on standard error now and then, once a run takes long.

    Args:
        every: Seconds between lines, and before the first one.
        stream: Where to; standard error by default.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        every: float = 20.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.every, self.stream, self.clock = every, stream, clock
        self.begin = self.last = clock()

    def __call__(self, done: int, total: int, words: str) -> None:
        """Say where the run is, and how long the rest takes at the pace so far."""
        now = self.clock()
        if now - self.last < self.every:
            return
        self.last = now
        print(self.line(done, total, words, now), file=self.stream or sys.stderr, flush=True)

    def line(self, done: int, total: int, words: str, now: float) -> str:
        """One line of progress."""
        seconds = now - self.begin
        share = f"{100 * done // max(total, 1)} %"
        if not done:
            return f"{share} after {duration(seconds)}: {words}"
        remaining = seconds * (total - done) / done
        return f"{share} after {duration(seconds)}, about {duration(remaining)} to go: {words}"


def tell_cost(announce: Callable[[str], None] | None, words: str, seconds: float) -> None:
    """Tell beforehand what an audit will cost, on standard error where nobody else wants it.

    Args:
        announce: Whom to tell; None for standard error, and then only of more than a moment.
        words: What to say.
        seconds: What it takes.
    """
    if announce is not None:
        announce(words)
    elif seconds > _MOMENT:
        print(words, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A number of seconds in words.

    Examples:
        >>> from robustvae.audit.progress import duration
        >>> duration(45), duration(200), duration(7300)
        ('45 s', '3 min', '2 h 2 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
