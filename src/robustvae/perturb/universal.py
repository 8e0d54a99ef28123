"""One perturbation for all inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustvae.errors import ShapeError, check_count, check_positive
from robustvae.loops import loop
from robustvae.perturb.ascent import Score, SearchResult, evaluate, start_shares
from robustvae.perturb.ball import Ball
from robustvae.registry import register
from robustvae.seeding import RowGenerator, row_generators


@register("search", "universal")
@final
@dataclass(frozen=True)
class Universal:
    """The one change that raises the mean score of all inputs of the batch.

    Unlike every other search its rows belong together: each is attacked by the same change, so
    what is found depends on which inputs are asked about together, though not on their order.
    `shares_change` says so: an audit asks about all its inputs at once, whatever its shards are.
    Where the box clips, the pixels of an input keep to it.

    Args:
        steps: Gradients of each start, over all inputs.
        restarts: Starts; the one with the highest mean score is kept.
        step: Length of a step as a share of the radius, falling to 0.
        chunk: Inputs evaluated at once.

    Raises:
        RangeError: A count below 1, or a step that is not positive.
        ShapeError: Radii that differ between inputs (when called).

    References:
        Moosavi-Dezfooli et al., 2017.

    Examples:
        >>> import robustvae as rv, torch
        >>> x = torch.full((2, 1, 2, 2), 0.5)
        >>> bright = lambda y, rows: y.flatten(1).sum(1)
        >>> search = rv.Universal(steps=5, restarts=1)
        >>> search(bright, x, rv.Ball("linf", 0.1), generator=rv.generator(0)).y.max()
        tensor(0.6000)
    """

    shares_change: ClassVar[bool] = True

    steps: int = 50
    restarts: int = 3
    step: float = 1.0
    chunk: int = 250

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("steps", "restarts", "chunk"):
            check_count(getattr(self, name), name)
        check_positive(self.step, "step")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize the mean of `score` over one change of all of `x`."""
        radii = ball.radii(x)
        if not bool((radii == radii[0]).all()):
            raise ShapeError("a universal change needs one radius for all inputs: give a number")
        # a change of one value may take it from one end of the box to the other
        box = (-ball.span, ball.span) if ball.norm == "l0" else (None, None)
        around = Ball(ball.norm, float(radii[0]), *box)
        origin = torch.zeros_like(x[:1])
        rows = torch.arange(len(x), device=x.device)
        reach = float(ball.reach(x)[0])
        best, highest = x.clone(), torch.full((), -math.inf).to(x)
        values = torch.full_like(radii, -math.inf)
        norm, zeros = torch.zeros_like(radii), torch.zeros_like(radii)
        shares = start_shares(self.restarts).tolist()
        if isinstance(generator, RowGenerator):  # one stream for all, whatever their order is
            generator = min(generator.streams, key=torch.Generator.initial_seed)
        seeds = row_generators(generator, "universal", range(self.restarts))
        with loop(repr(self), x) as place:
            if place.content is not None:  # of a run that was stopped
                best, highest, values, norm, zeros = place.content
            for number in range(place.begin, self.restarts):
                place.at(number, best, highest, values, norm, zeros)
                change = shares[number] * around.sample(origin, generator=seeds[number])
                for count in range(self.steps + 1):
                    y = ball.project(x, x + change)
                    value, slope = self._evaluate(score, y, rows)
                    if bool(value.mean() > highest):
                        best, highest, values = y, value.mean(), value
                    if count == self.steps:
                        break
                    length = torch.linalg.vector_norm(slope.flatten(1), dim=1)
                    norm = torch.maximum(norm, length)
                    zeros = zeros + (length == 0).to(zeros)
                    total = slope.sum(0, keepdim=True)
                    unit = total / torch.linalg.vector_norm(total).clamp_min(1e-30)
                    if ball.norm == "linf":
                        unit = total.sign() * x[0].numel() ** -0.5
                    # linear decay: large steps cross the ball, the last ones settle
                    rate = self.step * (1 - count / self.steps) * reach
                    change = around.project(origin, change + rate * unit)
        gradients = self.steps * self.restarts
        queries = torch.full_like(rows, gradients + self.restarts)
        return SearchResult(best, values, norm, zeros / gradients, queries)

    def _evaluate(self, score: Score, y: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = [], []
        for part, which in zip(y.split(self.chunk), rows.split(self.chunk), strict=True):
            value, slope = evaluate(score, part, which)
            values.append(value)
            slopes.append(torch.zeros_like(part) if slope is None else slope)
        return torch.cat(values), torch.cat(slopes)
