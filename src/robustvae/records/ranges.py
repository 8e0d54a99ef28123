"""Results of many inputs in ranges that a store keeps, which a stopped run goes on with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from robustvae.arguments import checked
from robustvae.records.pieces import failure, pieces
from robustvae.records.states import SavedState, saving
from robustvae.records.store import Store
from robustvae.records.values import plain

_STEP = "range"


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
    does it: an input that fails alone has a `Failure` for its part. How many inputs are computed at
    once is fixed, as the last digits may depend on it; a range that takes long saves within, where
    its loops stand (`robustvae.records.states`).

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
    reusable = sum(one is not None for one in (*cuts.values(), *parts.values()))
    if reusable:
        tell(
            f"going on with {reusable} of {len(ranges)} parts that this run left in {store.folder}"
        )

    def part_of(rows: range) -> Any:
        part = parts[rows] if parts.get(rows) is not None else store.read(name(rows))
        if part is None:
            state = SavedState(store, name(rows))
            if state.steps:
                tell(f"going on within inputs {rows.start + 1} to {rows.stop}")
            with saving(state, _STEP):
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
