"""Searches that never ask for a gradient: if one of them wins, the gradients were wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import check_count, check_probability
from robustvae.loops import Loop, loop
from robustvae.perturb.ascent import Score, SearchResult, evaluate, join
from robustvae.perturb.ball import Ball
from robustvae.perturb.deadline import is_over
from robustvae.registry import register
from robustvae.seeding import RowGenerator, by_row, rand, row_generators


@register("search", "random-search")
@final
@dataclass(frozen=True)
class RandomSearch:
    """The best of several random points of the ball's boundary: noise of full size.

    Args:
        steps: Points tried for each input.
        chunk: Rows scored at once.

    Raises:
        RangeError: A count below 1.

    Examples:
        >>> from robustvae.perturb import Ball, RandomSearch
        >>> from robustvae.seeding import generator
        >>> import torch
        >>> x, ball = torch.full((1, 1, 2, 2), 0.5), Ball("linf", 0.1)
        >>> bright = lambda y, rows: y.flatten(1).sum(1)
        >>> RandomSearch(steps=200)(bright, x, ball, generator=generator(0)).y.min()
        tensor(0.6000)
    """

    steps: int = 100
    chunk: int = 250

    reads_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_count(self.steps, "steps")
        check_count(self.chunk, "chunk")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize `score` around each of `x`."""
        parts = []
        # one input at a time: its draws then follow from its own stream, whatever the batch
        for i, seed in enumerate(by_row(generator, "noise", x).streams):
            index = torch.full((self.steps,), i)
            center = x[i : i + 1].expand(self.steps, *x.shape[1:])
            y = outward(center, ball.rows(index), generator=seed)
            rows = index.to(x.device)
            value = torch.cat(
                [
                    evaluate(score, part, which, gradient=False)[0]
                    for part, which in zip(y.split(self.chunk), rows.split(self.chunk), strict=True)
                ]
            )
            best = value.argmax()
            parts.append(_without_gradient(y[best : best + 1], value[best : best + 1], self.steps))
        return join(parts)


@register("search", "square-search")
@final
@dataclass(frozen=True)
class SquareSearch:
    """Random squares of the image are pushed to the boundary and kept where the score rises.

    In an l0 ball no square fits: there some of the changed values go back, and as many others are
    moved to an end of the box, fewer of them as the search goes on.

    Args:
        steps: Candidates scored for each restart.
        restarts: Starts for each input, random points of the boundary.
        share: Share of the pixels in the first square, of the changed values for l0; it shrinks as
            the search goes on.
        chunk: Rows scored at once.

    Raises:
        RangeError: A count below 1, or a share outside (0, 1).

    References:
        Andriushchenko et al., 2020, Algorithms 1-3, without their stripes and bumps; Croce et al.,
        2022, Algorithm 1 (l0).

    Examples:
        >>> from robustvae.perturb import Ball, SquareSearch
        >>> from robustvae.seeding import generator
        >>> import torch
        >>> x, ball = torch.full((1, 1, 4, 4), 0.5), Ball("linf", 0.1)
        >>> bright = lambda y, rows: y.flatten(1).sum(1)
        >>> SquareSearch(steps=300)(bright, x, ball, generator=generator(0)).y.min()
        tensor(0.6000)
    """

    steps: int = 200
    restarts: int = 1
    share: float = 0.3
    chunk: int = 250

    reads_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("steps", "restarts", "chunk"):
            check_count(getattr(self, name), name)
        check_probability(self.share, "share")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize `score` around each of `x`."""
        # all restarts of an input in one batch, so that its best is known when the batch ends
        size = max(1, self.chunk // self.restarts)
        seeds = by_row(generator, "squares", x).streams
        return join(
            [
                self._part(score, x, ball, part, [seeds[i] for i in part.tolist()])
                for part in torch.arange(len(x)).split(size)
            ]
        )

    def _part(
        self, score: Score, x: Tensor, ball: Ball, inputs: Tensor, seeds: list[torch.Generator]
    ) -> SearchResult:
        rows = inputs.repeat_interleave(self.restarts).to(x.device)
        center, around = x[rows], ball.rows(rows)
        # a stream for each restart: the first of more restarts are those of fewer
        streams = RowGenerator(
            [g for seed in seeds for g in row_generators(seed, "restart", range(self.restarts))]
        )
        best = outward(center, around, generator=streams)
        with loop(repr(self), rows, best) as place:
            best, highest, queries = self._squared(
                place, score, center, around, rows, best, streams
            )
        shape = (len(inputs), self.restarts)
        winner = highest.view(shape).argmax(1)
        pick = torch.arange(len(inputs), device=x.device) * self.restarts + winner
        return _without_gradient(best[pick], highest[pick], self.restarts * queries)

    def _squared(
        self,
        place: Loop,
        score: Score,
        center: Tensor,
        around: Ball,
        rows: Tensor,
        best: Tensor,
        streams: RowGenerator,
    ) -> tuple[Tensor, Tensor, int]:
        """The best point from each start, its score, and how many scores were asked for."""
        if place.result is not None:
            return tuple(place.result)
        if place.content is None:
            highest, _ = evaluate(score, best, rows, gradient=False)
        else:
            best, highest, states = place.content
            streams.set_state(states.cpu())
        radius = around.radii(center)
        queries = 1 + place.begin
        for step in range(place.begin, self.steps):
            if place.is_kept:
                place.at(step, best, highest, streams.get_state())
            if is_over(step):
                break
            queries += 1
            if around.norm == "l0":
                y = self._swapped(center, best, step, around, generator=streams)
            else:
                step_in = self._square(center, step, generator=streams)
                reach = radius.view(-1, 1, 1, 1) * (2.0 if around.norm == "linf" else 1.0)
                y = around.project(center, best + reach * step_in)
            if around.norm == "l2":
                # what a square takes from the radius is given back: inside it gains nothing
                y = around.project(center, center + _stretched(y - center, radius))
            value, _ = evaluate(score, y, rows, gradient=False)
            better = value > highest
            best = torch.where(better.view(-1, 1, 1, 1), y, best)
            highest = torch.where(better, value, highest)
        place.finish(best, highest, queries)
        return best, highest, queries

    def _square(self, like: Tensor, step: int, *, generator: torch.Generator) -> Tensor:
        """Plus or minus one on one random square a row and channel, 0 elsewhere."""
        n, channels, height, width = like.shape
        # halved six times in all, as the paper does: coarse squares first, then details
        share = self.share * 0.5 ** (6 * step / self.steps)
        side = max(1, min(round(math.sqrt(share * height * width)), height, width))
        numbers = rand(n, 2 + channels, like=like, generator=generator)
        top = (numbers[:, 0] * (height - side + 1)).long().view(-1, 1, 1)
        left = (numbers[:, 1] * (width - side + 1)).long().view(-1, 1, 1)
        down = torch.arange(height, device=like.device).view(1, -1, 1) - top
        right = torch.arange(width, device=like.device).view(1, 1, -1) - left
        inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
        sign = 1 - 2 * (numbers[:, 2:] < 0.5).to(like)
        return inside.unsqueeze(1) * sign.view(n, channels, 1, 1)

    def _swapped(
        self, x: Tensor, y: Tensor, step: int, ball: Ball, *, generator: RowGenerator
    ) -> Tensor:
        """Some changed values of each row back at `x`, and as many others at an end of the box."""
        share = self.share * 0.5 ** (6 * step / self.steps)
        few = Ball("l0", (share * ball.radii(x)).ceil(), ball.low, ball.high)
        places, other_places, side = (rand(*x.shape, like=x, generator=generator) for _ in range(3))
        # a value that is changed is worth more than any that is not, and the other way round
        back = few.chosen(x, places + (y != x).to(x))
        y = torch.where(back, x, y)
        moved = few.chosen(x, other_places + (y == x).to(x))
        far = (side - 0.5).sign() * torch.inf
        return ball.project(x, torch.where(moved, ball.clip(far), y))


@checked(formula=True)
def outward(x: Tensor, ball: Ball, *, generator: torch.Generator) -> Tensor:
    """Random points of full size: corners of the l-infinity ball, the sphere of the l2 ball.

    Args:
        x: Centers, (B, C, H, W).
        ball: Ball; its box may take some of the size back.
        generator: Spent by the draw.
    """
    if ball.norm == "l0":
        near = ball.sample(x, generator=generator)
        least, greatest = (ball.clip(torch.full_like(x, sign * torch.inf)) for sign in (-1, 1))
        return torch.where(near == x, x, torch.where(2 * near < least + greatest, least, greatest))
    y = ball.free().sample(x, generator=generator)
    if ball.norm == "linf":
        step = torch.where(y >= x, 1.0, -1.0).to(x) * ball.radii(x).view(-1, 1, 1, 1)
        return ball.project(x, x + step)
    return ball.project(x, x + _stretched(y - x, ball.radii(x)))


def _stretched(step: Tensor, radius: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(step.flatten(1), dim=1).clamp_min(1e-12)
    return step * (radius / length).view(-1, 1, 1, 1)


def _without_gradient(y: Tensor, score: Tensor, queries: int) -> SearchResult:
    nothing = torch.full_like(score, torch.nan)
    return SearchResult(y, score, nothing, nothing, torch.full_like(score, queries).long())
