"""How results print, in three lines of words and numbers, and how runs tell how far they are.

A result holds a number for every input. Printing all of them fills screens and says nothing, so
its text is a summary, and the numbers are there for those who ask for a field. A run that takes
long says in a line now and then what is done and how long the rest takes.
"""

from __future__ import annotations

import dataclasses
import html
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TextIO, TypeVar, final

from robustvae.errors import single_line
from robustvae.rounding import floor

Result = TypeVar("Result", bound=type)

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what is under way)."""

_LONGEST = 160  # characters of a line: two lines of a terminal at most


def three_lines(
    *, floor: tuple[str, ...] = (), show: tuple[str, ...] = ()
) -> Callable[[Result], Result]:
    """A decorator of a dataclass of results: it prints as a summary of three lines.

    For dataclasses made with `repr=False`, and typed records; a `__repr__` of the class's own is
    left as it is.

    The first line says what it is and what is one word or number; the second summarizes what is a
    number for each input, such as `score (B,)`; the third names what is larger, by its shape.

    Args:
        floor: Fields whose numbers are rounded down, since they are guaranteed.
        show: Properties that are shown beside the fields.

    Examples:
        >>> import dataclasses
        >>> from robustvae.display import three_lines
        >>> @three_lines(floor=("radius",))
        ... @dataclasses.dataclass(repr=False)
        ... class Radii:
        ...     radius: tuple
        ...     kind: str = "deterministic"
        >>> Radii((0.19999, 0.3))
        Radii of 2 inputs: kind deterministic
        radius: 0.1999 to 0.3, median 0.2499
        no larger fields
    """

    def decorate(kind: Result) -> Result:
        def text(result: Any) -> str:
            return "\n".join(lines(result, floor, show))

        def page(result: Any) -> str:
            first, *others = (html.escape(line) for line in repr(result).splitlines())
            return f"<div><b>{first}</b><br>{'<br>'.join(others)}</div>"

        if "__repr__" not in vars(kind):  # a class may say it better itself
            kind.__repr__ = text  # type: ignore[assignment]
        kind._repr_html_ = page  # type: ignore[attr-defined]
        return kind

    return decorate


def lines(
    result: Any, floor: tuple[str, ...] = (), show: tuple[str, ...] = ()
) -> tuple[str, str, str]:
    """The three lines that summarize a result."""
    words: list[str] = []
    numbers: list[str] = []
    larger: list[str] = []
    count: int | None = None
    for field in (*_field_names(result), *show):
        value, name = getattr(result, field), field.replace("_", " ")
        shape = tuple(getattr(value, "shape", ()))
        values = _numbers(value)
        if values is not None and (isinstance(value, tuple | list) or len(shape) == 1):
            count = count or len(values)
            numbers.append(f"{name}: {_spread(values, field in floor)}")
        elif isinstance(value, tuple | list) and value and all(isinstance(v, str) for v in value):
            count = count or len(value)
            numbers.append(f"{name}: {_tally(value)}")
        elif values is not None and len(values) == 1:
            words.append(f"{name} {_shown(values[0], field in floor)}")
        elif isinstance(value, str | bool):
            words.append(f"{name} {value}")
        elif value is not None and not (isinstance(value, tuple | list | dict) and not value):
            larger.append(f"{name} {shape if shape else _size(value)}")
    title = type(result).__name__ + (f" of {count} inputs" if count else "")
    return (
        single_line(f"{title}: {', '.join(words)}" if words else title, _LONGEST),
        single_line("; ".join(numbers) or "no number for each input", 2 * _LONGEST),
        single_line(f"also: {', '.join(larger)}" if larger else "no larger fields", _LONGEST),
    )


def _field_names(result: Any) -> list[str]:
    """Of a dataclass, or of a typed record."""
    if dataclasses.is_dataclass(result):
        return [field.name for field in dataclasses.fields(result)]
    return list(type(result).model_fields)


def _numbers(value: Any) -> list[float] | None:
    """A flat list of the numbers that a field holds, or None where it holds something else."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [float(value)]
    if isinstance(value, tuple | list) and value:
        flat = all(isinstance(part, int | float) for part in value)
        return [float(part) for part in value] if flat else None
    return None


def _spread(values: list[float], down: bool) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "none finite"
    low, high, middle = min(finite), max(finite), statistics.median(finite)
    if low == high:
        text = _shown(low, down)
    else:
        text = f"{_shown(low, down)} to {_shown(high, down)}, median {_shown(middle, down)}"
    return text if len(finite) == len(values) else f"{text}, {len(values) - len(finite)} not finite"


def _shown(value: float, down: bool) -> str:
    return floor(value, 4) if down else f"{value:.4g}"


def _tally(words: tuple[str, ...] | list[str]) -> str:
    counts = Counter(words)
    if len(counts) > 4:
        return f"{len(words)} texts"
    return ", ".join(f"{word} {n}" if len(words) > 1 else word for word, n in counts.items())


def _size(value: Any) -> str:
    return f"({len(value)})" if hasattr(value, "__len__") else type(value).__name__


@final
class Lines:
    """Prints a line on standard error now and then, once a run takes long.

    Args:
        every: Seconds between lines, and before the first one.
        stream: Where to; standard error by default.
        clock: Seconds that only grow.
        task: What the lines begin with.
    """

    def __init__(
        self,
        every: float = 20.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        task: str = "",
    ) -> None:
        self.every, self.stream, self.clock = every, stream, clock
        self.start = f"{task}: " if task else ""
        self.begin = self.last = clock()
        self.first: int | None = None  # steps that an earlier run had done, which took no time now

    def __call__(self, done: int, total: int, words: str) -> None:
        """Say where the run is, and how long the rest takes at the pace so far."""
        if self.first is None:
            self.first = done
        now = self.clock()
        if now - self.last < self.every:
            return
        self.last = now
        line = single_line(self.start + self.line(done, total, words, now))
        print(line, file=self.stream or sys.stderr, flush=True)

    def line(self, done: int, total: int, words: str, now: float) -> str:
        """One line of progress."""
        seconds = now - self.begin
        share = f"{100 * done // max(total, 1)} %"
        steps = done - (self.first or 0)
        if steps < 1:
            return f"{share} after {duration(seconds)}: {words}"
        remaining = seconds * (total - done) / steps
        return f"{share} after {duration(seconds)}, about {duration(remaining)} to go: {words}"


def duration(seconds: float) -> str:
    """A number of seconds in words.

    Examples:
        >>> from robustvae.display import duration
        >>> duration(45), duration(200), duration(7300)
        ('45 s', '3 min', '2 h 2 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
