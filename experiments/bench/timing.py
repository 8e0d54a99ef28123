"""Timing by turns: sides that are compared meet the same better and worse minutes of a machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from experiments.harness import Row


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes, by wall clock or by the processor's (`time.process_time`)."""
    began = clock()
    work()
    return clock() - began


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every side in every round, the order turned from round to round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in sorted(sides, reverse=bool(turn % 2)):
            times[name].append(seconds(sides[name], clock))
    return times


def ratio(times: Mapping[str, Sequence[float]], side: str, floor: str) -> float:
    """Median over the rounds of one side's time by another's."""
    pairs = zip(times[side], times[floor], strict=True)
    return statistics.median(a / b for a, b in pairs)


def timed_rows(times: Mapping[str, Sequence[float]], per: float = 1.0) -> list[Row]:
    """A row a side: median milliseconds, divided by `per`."""
    return [
        Row(name, "milliseconds", 1e3 * statistics.median(values) / per, n=len(values))
        for name, values in times.items()
    ]
