"""The clock of a profile's use: every stage has its share of the minutes that are left."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, final

from robustvae.attacks import Attack
from robustvae.audit.budget import search_seconds
from robustvae.audit.unit_cost import UnitCost
from robustvae.perturb.deadline import until

_FREE = UnitCost(0.0, 0.0, 0.0)


@final
class UseClock:
    """Gives each stage the share of the remaining time that it was expected to take.

    So what was slow costs every later stage a little, and none all of its time: both sides of a
    question, and all victims, are searched alike.

    Args:
        end: On the monotonic clock; infinite for no limit.
        units: What a row costs each victim.
        seconds: What all stages were expected to take.

    Examples:
        >>> import time
        >>> from robustvae.audit.profiles.pace import UseClock
        >>> clock = UseClock(time.monotonic() + 100, {}, seconds=10)
        >>> round(clock.room(5)), round(clock.room(5))
        (50, 100)
    """

    def __init__(
        self, end: float = math.inf, units: Mapping[str, UnitCost] | None = None, seconds: float = 0
    ) -> None:
        self.end, self.units, self.remaining = end, dict(units or {}), seconds

    @property
    def is_limited(self) -> bool:
        """Whether there is an end."""
        return math.isfinite(self.end)

    @property
    def is_over(self) -> bool:
        """Whether the minutes of the audit are over."""
        return time.monotonic() > self.end

    def unit(self, name: str) -> UnitCost:
        """What a row costs a victim; one that was not measured costs what the first one does."""
        return self.units.get(name, next(iter(self.units.values()), _FREE))

    def search_seconds(self, name: str, attack: Attack) -> float:
        """Seconds that an attack's search takes for an input, of one draw of the victim."""
        search: Any = attack.search
        while hasattr(search, "search"):  # the search within, of one that masks places
            search = search.search
        return search_seconds(search, self.unit(name))

    def room(self, seconds: float) -> float:
        """Seconds that a stage may take which was expected to take `seconds`."""
        if not self.is_limited:
            return math.inf
        left = max(self.end - time.monotonic(), 0.0)
        share = min(seconds / self.remaining, 1.0) if self.remaining > 0 else 1.0
        self.remaining = max(self.remaining - seconds, 0.0)
        return share * left

    @contextlib.contextmanager
    def watched(self, seconds: float) -> Iterator[list[str]]:
        """Within: searches stop between two steps once their room is used up.

        Args:
            seconds: That they were expected to take.

        Yields:
            A list, of one sentence afterwards where a search was stopped.
        """
        notes: list[str] = []
        if not self.is_limited:
            yield notes
            return
        with until(time.monotonic() + self.room(seconds)) as deadline:
            yield notes
        if deadline.fewest is not None:
            notes.append("some searches were stopped early, for want of time")
