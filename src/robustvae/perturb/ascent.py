"""Projected gradient ascent of any score over a ball: all inputs x restarts, in chunks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.display import three_lines
from robustvae.errors import (
    RangeError,
    check_choice,
    check_count,
    check_number,
    check_positive,
    is_out_of_memory,
)
from robustvae.loops import Loop, loop
from robustvae.perturb.ball import Ball
from robustvae.perturb.deadline import is_over
from robustvae.registry import register
from robustvae.seeding import by_row, row_generators

Score = Callable[[Tensor, Tensor], Tensor]
"""`score(y, rows) -> (n,)`: higher is better; row i of `y` is a candidate for input `rows[i]`."""

RULES = ("sign", "normalized", "adam")
SCHEDULES = ("constant", "linear", "plateau")
_FIRST_START = 0.01  # of the ball: near x, yet off the point where many gradients vanish
_STRATA = 10  # starts until the sizes repeat: as many as the default has, so that none is left out
_BETAS = (0.9, 0.999)  # Adam's own, so that its step size means what users know
VALUES_AT_ONCE = 2**20  # of inputs: their graphs then stay within one or two GB


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """What a search found, one row per input.

    Attributes:
        y: The best point, (B, C, H, W).
        score: Its score as the search saw it, (B,); -inf where no score was a number.
        gradient_norm: Greatest 2-norm of a gradient met, (B,); NaN for searches without gradients.
        zero_gradients: Share of the gradients that were exactly 0 or no number, (B,).
        queries: Scores computed, with or without gradient, (B,) int.
    """

    y: Tensor
    score: Tensor
    gradient_norm: Tensor
    zero_gradients: Tensor
    queries: Tensor


@register("search", "projected-ascent")
@final
@dataclass(frozen=True)
class ProjectedAscent:
    """Projected gradient ascent with restarts; the best iterate of the best restart is kept.

    Steps are measured by the ball, whose 2-norm radius is R (radius x sqrt(D) for l-infinity; the
    diagonal of the box for l0, where few values move): y <- project(y + step R u), u =
    sign(g)/sqrt(D), g/||g||_2, or Adam's direction/sqrt(D).
    Signs and Adam aim at the corners of a cube and come to rest up to a fifth short of the best
    point of an l2 ball: there the second half of their steps are normalized ones.

    Args:
        steps: Gradients for each restart.
        restarts: Starts for each input: random, of sizes from 1 % of the ball to all of it; a
            single one is close to x. The first starts of more are those of fewer, so more never
            find less.
        step: Length of a step as a share of the radius.
        rule: "sign", "normalized", "adam", or None for the one that suits the ball:
            sign steps for l-infinity, normalized ones for l2 and l0.
        schedule: "constant"; "linear" (down to 0); "plateau": a row whose best score has not risen
            for `patience` steps goes back to its best point and halves its step.
        momentum: Share of the last direction kept, in [0, 1).
        patience: Steps without a rise before "plateau" halves.
        target: A row whose score reaches this leaves the batch; None lets all rows finish.
        chunk: Rows (inputs x restarts) evaluated at once, fewer of large inputs; halved when memory
            runs out.

    Raises:
        UnknownNameError: Any other rule or schedule.
        RangeError: A count below 1, a step that is not positive, a momentum outside [0, 1).

    References:
        Madry et al., 2018; [Kuzina22] Appendix D.2; Dong et al., 2018 (momentum);
        Croce & Hein, 2020 (halving).

    Examples:
        >>> import robustvae as rv, torch
        >>> search = rv.ProjectedAscent(steps=20, restarts=2)
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> bright = lambda y, rows: y.flatten(1).sum(1)
        >>> search(bright, x, rv.Ball("linf", 0.1), generator=rv.generator(0)).y.max()
        tensor(0.6000)
    """

    steps: int = 50
    restarts: int = 10
    step: float = 1.0
    rule: str | None = None
    schedule: str = "linear"
    momentum: float = 0.0
    patience: int = 5
    target: float | None = None
    chunk: int = 250

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("steps", "restarts", "patience", "chunk"):
            check_count(getattr(self, name), name)
        check_positive(self.step, "step")
        check_number(self.momentum, "momentum", least=0.0)
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.momentum >= 1:
            raise RangeError(f"momentum must lie in [0, 1), got {self.momentum:g}")
        if self.rule is not None:
            check_choice("rule", self.rule, RULES)
        if self.target is not None:
            check_number(self.target, "target")

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize `score` around each of `x`; see `ascend`."""
        return ascend(score, x, ball, self, generator=generator)


@checked()
def ascend(
    score: Score, x: Tensor, ball: Ball, search: ProjectedAscent, *, generator: torch.Generator
) -> SearchResult:
    """Maximize `score` over the ball around each input by projected gradient ascent.

    The starts of an input follow from the generator and the input alone (see
    `robustvae.seeding.by_row`), so neither `chunk` nor the other inputs change them. What is found
    then differs by the rounding of batches of other shapes only.

    Args:
        score: Differentiable; called as `score(y, rows)`.
        x: Centers, (B, C, H, W), in the box where the ball has one.
        ball: Where to look.
        search: How to look.
        generator: Spent by the random starts.
    """
    chunk = rows_that_fit(x, search.chunk)
    parts: list[SearchResult] = []
    seeds = by_row(generator, "ascent", x).streams
    first = 0
    while first < len(x):
        inputs = torch.arange(first, min(len(x), first + max(1, chunk // search.restarts)))
        states = [seeds[i].get_state() for i in inputs.tolist()]
        try:
            begin = torch.cat(list(starts(x, ball, search.restarts, inputs, seeds)))
            parts.append(_worst(score, x, ball, search, inputs.to(x.device), begin, chunk))
        except Exception as error:
            if chunk == 1 or not is_out_of_memory(error):
                raise
            chunk = max(1, chunk // 2)
            for i, state in zip(inputs.tolist(), states, strict=True):
                seeds[i].set_state(state)
            continue
        first += len(inputs)
    return join(parts)


def ascend_from(
    score: Score, x: Tensor, ball: Ball, search: ProjectedAscent, begin: Tensor
) -> SearchResult:
    """As `ascend`, from starts that are given.

    Args:
        score: Differentiable; called as `score(y, rows)`.
        x: Centers, (B, C, H, W).
        ball: Where to look.
        search: How to look; its `restarts` is not read.
        begin: Starts in the ball, (B, starts, C, H, W).
    """
    search = dataclasses.replace(search, restarts=begin.shape[1])
    chunk = rows_that_fit(x, search.chunk)
    size = max(1, chunk // search.restarts)
    return join(
        [
            _worst(score, x, ball, search, part.to(x.device), begin[part].flatten(0, 1), chunk)
            for part in torch.arange(len(x)).split(size)
        ]
    )


def rows_that_fit(x: Tensor, most: int) -> int:
    """How many rows like those of `x` are evaluated at once, at most `most`.

    A gradient keeps some hundred numbers for each number of an input.

    Examples:
        >>> import torch
        >>> from robustvae.perturb.ascent import rows_that_fit
        >>> [rows_that_fit(torch.zeros(1, 3, side, side), 250) for side in (28, 256)]
        [250, 5]
    """
    return max(1, min(most, VALUES_AT_ONCE // x[0].numel()))


def join(parts: list[SearchResult]) -> SearchResult:
    """One result of several that belong to consecutive inputs."""
    return SearchResult(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("y", "score", "gradient_norm", "zero_gradients", "queries")
        )
    )


def starts(
    x: Tensor, ball: Ball, restarts: int, inputs: Tensor, seeds: list[torch.Generator]
) -> Iterator[Tensor]:
    """The random starts of some inputs, (restarts, C, H, W) each; start k is one whatever their
    number.
    """
    share = start_shares(restarts).view(-1, *(1,) * (x.ndim - 1)).to(x)
    for i in inputs.tolist():
        around = ball.rows(torch.tensor([i]))
        points = [
            around.sample(x[i : i + 1], generator=seed)
            for seed in row_generators(seeds[i], "restart", range(restarts))
        ]
        yield x[i] + share * (torch.cat(points) - x[i])


def start_shares(restarts: int) -> Tensor:
    """How much of the ball each start may use, (restarts,): in equal ratios from 1 % to all of it.

    The order spreads any number of first starts over the whole range: 1 %, all, then between.

    Examples:
        >>> from robustvae.perturb.ascent import start_shares
        >>> start_shares(3)
        tensor([0.0100, 1.0000, 0.1000])
    """
    places = [0.0, 1.0]
    while len(places) < min(restarts, _STRATA):
        # van der Corput: the next point halves one of the widest gaps
        bits = bin(len(places) - 1)[2:]
        places.append(sum(int(bit) * 0.5 ** (k + 1) for k, bit in enumerate(reversed(bits))))
    order = torch.tensor([places[k % len(places)] for k in range(restarts)])
    return torch.tensor(_FIRST_START) ** (1 - order)


def _worst(
    score: Score,
    x: Tensor,
    ball: Ball,
    search: ProjectedAscent,
    inputs: Tensor,
    starts: Tensor,
    chunk: int,
) -> SearchResult:
    """Climb from every start of some inputs and keep each input's best."""
    rows = inputs.repeat_interleave(search.restarts)
    climbs = join(
        [
            _climb(score, x, ball, search, part, starts[begin : begin + chunk])
            for begin, part in zip(range(0, len(rows), chunk), rows.split(chunk), strict=True)
        ]
    )
    shape = (len(inputs), search.restarts)
    best = first_best(judged(score, climbs, rows, chunk).view(shape))
    pick = torch.arange(len(inputs), device=x.device) * search.restarts + best
    return SearchResult(
        climbs.y[pick],
        climbs.score[pick],
        climbs.gradient_norm.view(shape).amax(1),
        climbs.zero_gradients.view(shape).mean(1),
        climbs.queries.view(shape).sum(1),
    )


def judged(score: Score, climbs: SearchResult, rows: Tensor, chunk: int) -> Tensor:
    """By what restarts are kept, (n,): the reported score where `score` has one, else its own."""
    report = getattr(score, "reported", None)
    if report is None:
        return climbs.score
    with torch.no_grad():
        value = torch.cat(
            [
                report(y, part)
                for y, part in zip(climbs.y.split(chunk), rows.split(chunk), strict=True)
            ]
        )
    return value.nan_to_num(-math.inf, math.inf, -math.inf)


def first_best(score: Tensor) -> Tensor:
    """The first column that holds a row's greatest value to some roundings, (n,).

    Two starts often end at equal scores, such as at d and -d: rounding must not choose.
    """
    greatest = score.amax(1, keepdim=True)
    slack = 64 * torch.finfo(score.dtype).eps * greatest.abs()
    return (score >= greatest - slack.nan_to_num(0.0, 0.0, 0.0)).int().argmax(1)


def _climb(
    score: Score, x: Tensor, ball: Ball, search: ProjectedAscent, rows: Tensor, start: Tensor
) -> SearchResult:
    """Climb from one start per row; rows that are done leave the batch."""
    with loop(repr(search), rows, start) as place:
        if place.result is None:
            climb = _climbed(place, score, x, ball, search, rows, start)
            place.finish(*vars(climb).values())
    return SearchResult(*place.result)


def _climbed(
    place: Loop,
    score: Score,
    x: Tensor,
    ball: Ball,
    search: ProjectedAscent,
    rows: Tensor,
    start: Tensor,
) -> SearchResult:
    rule = search.rule or ("sign" if ball.norm == "linf" else "normalized")
    n, shape = len(rows), (-1, 1, 1, 1)
    pixels, tiny = x[0].numel(), torch.finfo(x.dtype).tiny
    column = start.new_zeros(n)
    now = _Climb(
        torch.arange(n, device=x.device),
        rows,
        x[rows],
        start,
        start,
        column - math.inf,
        column,
        column,
        column.long(),
        column.long(),
        column,
        column.view(shape) + search.step,
        torch.zeros_like(start),
        torch.zeros_like(start),
    )
    finish: list[_Climb] = []
    if place.content is not None:  # of a run that was stopped
        rule, *climbs = place.content
        now, *finish = (_Climb(*tensors) for tensors in climbs)
    current = ball.rows(now.rows)
    reach = current.reach(now.center).view(shape)

    for count in range(place.begin, search.steps + 1):
        place.at(count, rule, *(part.all() for part in [now, *finish]))
        last = count == search.steps or is_over(count)
        value, gradient = evaluate(score, now.y, now.rows, gradient=not last)
        better = value > now.best_score
        now.best = torch.where(better.view(shape), now.y, now.best)
        now.best_score = torch.where(better, value, now.best_score)
        now.queries = now.queries + 1
        if gradient is None:
            break
        length = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        now.gradient_norm = torch.maximum(now.gradient_norm, length)
        now.zeros = now.zeros + (length == 0)
        now.gradients = now.gradients + 1

        if search.target is not None:
            stay = now.best_score < search.target
            if not bool(stay.all()):
                finish.append(now.part(~stay))
                now, reach = now.part(stay), reach[stay]
                gradient, length, better = gradient[stay], length[stay], better[stay]
                if not len(now.rows):
                    break
                current = ball.rows(now.rows)

        if ball.norm == "l2" and rule != "normalized" and 2 * count >= search.steps:
            rule = "normalized"
            now.kept, now.rate = torch.zeros_like(now.kept), torch.full_like(now.rate, search.step)
        unit = gradient
        if rule != "sign" or search.momentum:
            unit = gradient / length.clamp_min(tiny).view(shape)
        if rule == "adam":
            now.kept = unit.lerp(now.kept, _BETAS[0])
            now.square = unit.square().lerp(now.square, _BETAS[1])
            spread = (now.square / (1 - _BETAS[1] ** (count + 1))).sqrt() + 1e-12
            unit = now.kept / (1 - _BETAS[0] ** (count + 1)) / spread * pixels**-0.5
        elif search.momentum:
            now.kept = search.momentum * now.kept + unit
            full_length = torch.linalg.vector_norm(now.kept, dim=(1, 2, 3), keepdim=True)
            unit = now.kept / full_length.clamp_min(tiny)
        if rule == "sign":
            unit = unit.sign() * pixels**-0.5

        rate: Tensor | float = search.step
        if search.schedule == "linear":
            rate = search.step * (1 - count / search.steps)
        elif search.schedule == "plateau":
            stall = torch.where(better, 0, now.stalled + 1)
            halve = stall >= search.patience
            now.stalled = stall.where(~halve, 0)
            now.rate = torch.where(halve.view(shape), now.rate / 2, now.rate)
            now.y = torch.where(halve.view(shape), now.best, now.y)
            rate = now.rate
        now.y = current.project(now.center, torch.addcmul(now.y, rate * reach, unit))

    result = _Climb(
        *(torch.cat(parts) for parts in zip(*(p.all() for p in [*finish, now]), strict=True))
    )
    result = result.part(result.place.argsort())
    share = result.zeros / result.gradients.clamp_min(1)
    return SearchResult(result.best, result.best_score, result.gradient_norm, share, result.queries)


@dataclass
class _Climb:
    """The rows still climbing, all tensors of the same length."""

    place: Tensor
    rows: Tensor
    center: Tensor
    y: Tensor
    best: Tensor
    best_score: Tensor
    gradient_norm: Tensor
    zeros: Tensor
    gradients: Tensor
    queries: Tensor
    stalled: Tensor
    rate: Tensor
    kept: Tensor
    square: Tensor

    def all(self) -> tuple[Tensor, ...]:
        """The tensors in their order."""
        return tuple(vars(self).values())

    def part(self, index: Tensor) -> _Climb:
        """Some of the rows."""
        return _Climb(*(tensor[index] for tensor in self.all()))


def evaluate(
    score: Score, y: Tensor, rows: Tensor, *, gradient: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The score of each row, NaN as -inf, and its gradient with 0 where there is none.

    Args:
        score: Called as `score(y, rows)`.
        y: Candidates, (n, C, H, W).
        rows: The input of each, (n,).
        gradient: Whether to compute the gradient; None is returned for it otherwise.
    """
    with torch.set_grad_enabled(gradient):
        y = y.detach().requires_grad_(gradient)
        value = score(y, rows)
        slope = None
        if gradient:
            slope = torch.zeros_like(y)
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value.sum(), y, allow_unused=True)
                if grad is not None:
                    slope = grad.nan_to_num(0.0, 0.0, 0.0)
    return value.detach().nan_to_num(-math.inf, math.inf, -math.inf), slope
