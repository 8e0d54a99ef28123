"""A search that leaves some values of the input as they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.arguments import checked_fields
from robustvae.errors import RangeError
from robustvae.perturb.ascent import ProjectedAscent, Score, SearchResult
from robustvae.perturb.ball import Ball
from robustvae.registry import build, register


@checked_fields
@register("search", "masked")
@final
@dataclass(frozen=True)
class Masked:
    """Another search whose changes are taken back at some places of the input.

    Features of a table that nobody can forge, or pixels under a frame, stay as they are. The
    result lies in the same ball: taking a change back makes it no larger.

    Args:
        search: The search, an object or a spec.
        places: Places in the flat input, from 0, that stay as they are.

    Raises:
        RangeError: A place below 0, or (when called) beyond the input, or no place left free.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.perturb import Masked
        >>> x, ball = torch.full((1, 1, 1, 3), 0.5), rv.Ball("linf", 0.1)
        >>> bright = lambda y, rows: y.flatten(1).sum(1)
        >>> search = Masked(rv.ProjectedAscent(steps=5, restarts=1), (1,))
        >>> y = search(bright, x, ball, generator=rv.generator(0)).y
        >>> [round(value, 3) for value in y.flatten().tolist()]
        [0.6, 0.5, 0.6]
    """

    search: Any = dataclasses.field(default_factory=ProjectedAscent)
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Make the search of its spec, and validate the places."""
        object.__setattr__(self, "search", build("search", self.search))
        object.__setattr__(self, "places", tuple(self.places))
        if any(place < 0 for place in self.places):
            raise RangeError(f"places must be at least 0, got {min(self.places)}")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize `score` around each of `x`."""
        count = x[0].numel()
        if self.places and max(self.places) >= count:
            raise RangeError(f"places must lie below {count}, the size of an input: give others")
        if len(set(self.places)) == count:
            raise RangeError("every place of the input is masked: leave at least one")
        free = torch.ones(count, dtype=x.dtype, device=x.device)
        free[list(self.places)] = 0
        free = free.reshape(x.shape[1:])

        def masked(function: Score) -> Score:
            return lambda y, rows: function(x[rows] + free * (y - x[rows]), rows)

        bound: Any = score
        reported = getattr(bound, "reported", None)
        if reported is None:
            bound = masked(score)
        else:  # both scores of a goal, of which the second decides between restarts
            bound = dataclasses.replace(
                bound, search=masked(bound.search), reported=masked(reported)
            )
        result = self.search(bound, x, ball, generator=generator)
        return dataclasses.replace(result, y=x + free * (result.y - x))
