"""Ascent by central differences: for scores whose own gradient is missing, masked or a lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.errors import check_count, check_positive
from robustvae.loops import Loop, loop
from robustvae.perturb.ascent import Score, SearchResult, evaluate, first_best, starts
from robustvae.perturb.ball import Ball
from robustvae.registry import register
from robustvae.seeding import RowGenerator, by_row, randn, row_generators

_TINY = 1e-30


@register("search", "central-differences")
@final
@dataclass(frozen=True)
class CentralDifferences:
    """Projected ascent along an estimate of the slope by central differences of the score.

    At each step the score is compared at y + h u and y - h u along `directions` random directions
    u, and along the last estimate and, where there is one, the score's own gradient: a masked
    gradient that still points somewhere is corrected, a wrong sign turned. The estimate is the
    least-squares slope in the space that they span. h is far above float32's rounding and wide
    enough to see over the steps of a rounding.

    Args:
        steps: Steps for each restart.
        restarts: Starts for each input, as in `ProjectedAscent`; more never find less.
        directions: Random directions of each step; each costs two scores.
        width: h, as root mean square a pixel.
        guided: Whether the score's own gradient is one of the directions.
        chunk: Rows scored at once.

    Raises:
        RangeError: A count below 1, or a width that is not positive.

    References:
        Ilyas et al., 2018 (estimated gradients); Maheswaranathan et al., 2019 (guided by a
        surrogate gradient).

    Examples:
        >>> from robustvae.perturb import Ball, CentralDifferences
        >>> from robustvae.seeding import generator
        >>> import torch
        >>> x, ball = torch.full((1, 1, 2, 2), 0.5), Ball("linf", 0.1)
        >>> blind = lambda y, rows: y.detach().flatten(1).sum(1)
        >>> CentralDifferences(10)(blind, x, ball, generator=generator(0)).y.min()
        tensor(0.6000)
    """

    steps: int = 40
    restarts: int = 1
    directions: int = 16
    width: float = 0.02
    guided: bool = True
    chunk: int = 250

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("steps", "restarts", "directions", "chunk"):
            check_count(getattr(self, name), name)
        check_positive(self.width, "width")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize `score` around each of `x`."""
        seeds = by_row(generator, "differences", x).streams
        everyone = torch.arange(len(x))
        begin = torch.cat(list(starts(x, ball, self.restarts, everyone, seeds)))
        # a stream for each restart: the first of more restarts are those of fewer
        streams = RowGenerator(
            [g for seed in seeds for g in row_generators(seed, "slopes", range(self.restarts))]
        )
        rows = everyone.repeat_interleave(self.restarts).to(x.device)
        y, value, lengths, zeros = self._climb(
            score, x[rows], ball.rows(rows), rows, begin, streams
        )
        shape = (len(x), self.restarts)
        pick = torch.arange(len(x), device=x.device) * self.restarts + first_best(value.view(shape))
        scores = 1 + self.steps * (1 + 2 * (self.directions + 1) + (3 if self.guided else 0))
        queries = torch.full_like(pick, self.restarts * scores)
        return SearchResult(
            y[pick], value[pick], lengths.view(shape).amax(1), zeros.view(shape).mean(1), queries
        )

    def _climb(
        self,
        score: Score,
        center: Tensor,
        ball: Ball,
        rows: Tensor,
        y: Tensor,
        streams: RowGenerator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with loop(repr(self), rows, y) as place:
            if place.result is None:
                climb = self._climbed(place, score, center, ball, rows, y, streams)
                place.finish(*climb)
            best, highest, lengths, zeros = place.result
            return best, highest, lengths, zeros

    def _climbed(
        self,
        place: Loop,
        score: Score,
        center: Tensor,
        ball: Ball,
        rows: Tensor,
        y: Tensor,
        streams: RowGenerator,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape, pixels = (-1,) + (1,) * (center.ndim - 1), center[0].numel()
        reach = ball.radii(center) * (pixels**0.5 if ball.norm == "linf" else 1.0)
        if place.content is None:
            best, highest = y, self._scores(score, y, rows)
            lengths, zeros = torch.zeros_like(highest), torch.zeros_like(highest)
            last = torch.zeros_like(y.flatten(1))
        else:  # of a run that was stopped
            y, last, best, highest, lengths, zeros, states = place.content
            streams.set_state(states.cpu())
        for step in range(place.begin, self.steps):
            if place.is_kept:
                place.at(step, y, last, best, highest, lengths, zeros, streams.get_state())
            slope = self._slope(score, ball, y, rows, last, streams)
            length = torch.linalg.vector_norm(slope, dim=1, keepdim=True)
            lengths = torch.maximum(lengths, length.squeeze(1))
            zeros = zeros + (length.squeeze(1) == 0)
            last = slope / length.clamp_min(_TINY)
            unit = slope.sign() * pixels**-0.5 if ball.norm == "linf" else last
            rate = reach * (1 - step / self.steps)
            point = y + rate.view(shape) * unit.view_as(y)
            y = ball.project(center, point)
            value = self._scores(score, y, rows)
            better = value > highest
            best = torch.where(better.view(shape), y, best)
            highest = torch.where(better, value, highest)
        return best, highest, lengths, zeros / self.steps

    def _slope(
        self,
        score: Score,
        ball: Ball,
        y: Tensor,
        rows: Tensor,
        last: Tensor,
        streams: RowGenerator,
    ) -> Tensor:
        """The least-squares slope over the directions, (n, D)."""
        count, pixels = len(y), y[0].numel()
        noise = randn(count, self.directions, pixels, like=y, generator=streams)
        columns = [noise, last.unsqueeze(1)]
        if self.guided:
            columns.append(self._own_gradient(score, y, rows).unsqueeze(1))
        # orthonormal, so that the least-squares slope is a sum; guides first, to stay whole
        basis = torch.linalg.qr(torch.cat(columns[::-1], 1).mT)[0].mT
        height = self.width * math.sqrt(pixels)
        shift = height * basis.view(count, -1, *y.shape[1:])
        up, down = (ball.clip(y.unsqueeze(1) + sign * shift) for sign in (1, -1))
        which = rows.repeat_interleave(basis.shape[1])
        gap = self._scores(score, up.flatten(0, 1), which)
        gap = gap - self._scores(score, down.flatten(0, 1), which)
        gap = gap.nan_to_num(0.0, 0.0, 0.0).view(count, -1, 1) / (2 * height)
        return (gap * basis).sum(1)

    def _own_gradient(self, score: Score, y: Tensor, rows: Tensor) -> Tensor:
        """The score's own gradient, of length 1 or 0, (n, D); 0 where it raises."""
        try:
            slopes = [
                evaluate(score, part, which)[1]
                for part, which in zip(y.split(self.chunk), rows.split(self.chunk), strict=True)
            ]
        except RuntimeError:  # a backward pass that raises guides nowhere
            return torch.zeros_like(y.flatten(1))
        slope = torch.cat([s for s in slopes if s is not None]).flatten(1)
        return slope / torch.linalg.vector_norm(slope, dim=1, keepdim=True).clamp_min(_TINY)

    def _scores(self, score: Score, y: Tensor, rows: Tensor) -> Tensor:
        return torch.cat(
            [
                evaluate(score, part, which, gradient=False)[0]
                for part, which in zip(y.split(self.chunk), rows.split(self.chunk), strict=True)
            ]
        )
