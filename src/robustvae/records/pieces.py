"""Work on many inputs that bears with inputs which fail, and with memory that runs out."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any

from robustvae.arguments import checked
from robustvae.errors import RobustVAEError, is_out_of_memory, single_line

_FAILED = "failed: "
_LONGEST = 300  # characters of a reason: four lines of a terminal


def _silent(words: str) -> None:
    """Nothing is said."""


@checked()
def pieces(
    count: int, compute: Callable[[Sequence[int]], Any], note: Callable[[str], None] = _silent
) -> list[tuple[Sequence[int], Any]]:
    """What `compute(rows)` gives for all rows at once, or in smaller batches where it must be.

    Where memory runs out, the batch is halved; where anything else fails, each row is tried alone,
    so that one bad input costs no other its numbers.

    Args:
        count: How many rows there are.
        compute: The measurement of some rows.
        note: Told in words of halved batches.

    Returns:
        Pairs (rows, result); a result is the exception for a row that fails alone.

    Raises:
        Exception: That of the whole batch, where every row fails alone.

    Examples:
        >>> from robustvae.records import pieces
        >>> pieces(3, lambda rows: [6 // (2 - row) for row in rows])[0]
        ((0,), [3])
    """
    try:
        rows = tuple(range(count))
        return [(rows, compute(rows))]
    except Exception as error:
        if count == 1:
            raise
        first = _released(error)
    results: list[tuple[Sequence[int], Any]] = []
    if is_out_of_memory(first):
        size = count
        while size > 1:
            size = -(-size // 2)
            results = [
                (rows, _attempt(compute, rows))
                for rows in (
                    tuple(range(begin, min(begin + size, count))) for begin in range(0, count, size)
                )
            ]
            if not any(isinstance(result, BaseException) for _, result in results):
                note(f"memory ran out on {count} inputs at once; computed {size} at a time")
                return results
    else:
        results = [((row,), _attempt(compute, (row,))) for row in range(count)]
    if all(isinstance(result, BaseException) for _, result in results):
        raise first
    return results


def _attempt(compute: Callable[[Sequence[int]], Any], rows: Sequence[int]) -> Any:
    try:
        return compute(rows)
    except Exception as error:  # a stranger's model may raise anything; it is told of by its row
        return _released(error)


def _released(error: Exception) -> Exception:
    """The error, whose frames let go of what they hold: it may be what filled the memory."""
    traceback.clear_frames(error.__traceback__)
    return error


@checked()
def failure(error: BaseException) -> str:
    """The status of an input that failed: "failed: " and why, in one line.

    Examples:
        >>> from robustvae.records import failure, failure_of
        >>> failure(ValueError("no such pixel"))
        'failed: ValueError: no such pixel'
        >>> failure_of(failure(ValueError("no such pixel"))), failure_of("ok")
        ('ValueError: no such pixel', None)
    """
    return _FAILED + single_line(reason_of(error), _LONGEST)


@checked()
def failure_of(status: str) -> str | None:
    """Why an input of that status failed; None where it did not."""
    return status.removeprefix(_FAILED) if status.startswith(_FAILED) else None


@checked()
def failures_of(statuses: Sequence[str]) -> dict[int, str]:
    """Why inputs failed, by their place.

    Examples:
        >>> from robustvae.records import failure, failures_of
        >>> failures_of(["ok", failure(ValueError("not this one"))])
        {1: 'ValueError: not this one'}
    """
    reasons = {place: failure_of(status) for place, status in enumerate(statuses)}
    return {place: reason for place, reason in reasons.items() if reason is not None}


@checked()
def reason_of(error: BaseException) -> str:
    """Why something could not be done: our own errors say it, others with their kind.

    Examples:
        >>> from robustvae.records import reason_of
        >>> reason_of(KeyError("size"))
        "KeyError: 'size'"
    """
    return str(error) if isinstance(error, RobustVAEError) else f"{type(error).__name__}: {error}"
