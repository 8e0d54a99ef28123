"""L-BFGS with box constraints, every row of the batch by itself: a step is one evaluation for all.

A row that refuses its trial point shortens it at the next evaluation while its neighbors go on,
so no row waits for another's line search, and a row that is done gives its seat to a waiting one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.display import three_lines
from robustvae.errors import check_count
from robustvae.loops import Loop, loop
from robustvae.perturb.ascent import Score, SearchResult, evaluate, first_best, join
from robustvae.perturb.ball import Ball
from robustvae.registry import register
from robustvae.seeding import by_row, row_generators

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_ARMIJO = 1e-4  # the usual share of the predicted decrease: hardly more than any decrease
_SHORTEST = 1e-12  # of the point's size: shorter steps are lost in rounding


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Minimum:
    """Where a batched minimization ended, one row per start.

    Attributes:
        y: Points, (n, D).
        value: Objective there, (n,).
        gradient_norm: Greatest 2-norm of a gradient met, (n,).
        evaluations: Objective and gradient evaluations, (n,) int.
        converged: Whether a tolerance was met, or no direction could be followed any more, before
            `steps` ran out, (n,) bool.
    """

    y: Tensor
    value: Tensor
    gradient_norm: Tensor
    evaluations: Tensor
    converged: Tensor


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Stopping:
    """When a row of a minimization is done.

    Args:
        steps: Most evaluations of a row.
        gradient_tolerance: Greatest entry of the projected gradient at which a row is done.
        value_tolerance: Relative gain at which a row is done, if three in a row are no larger; the
            start, which gained nothing yet, counts as one.
        scale: Least size of a value, (n,), that its gain is held against; 0 where it is None.
    """

    steps: int = 200
    gradient_tolerance: float = 1e-5
    value_tolerance: float = 1e-9
    scale: Tensor | None = None


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """Which rows of a minimization are at work together, and which one starts where.

    Args:
        together: Most rows in one evaluation; None for all.
        after: The row at whose end each row starts, once that is done, (n,) int; -1 for its own
            start, which all have where this is None. No row may wait for itself.
    """

    together: int | None = None
    after: Tensor | None = None


_USUAL, _AT_ONCE = Stopping(), Schedule()


@checked()
def minimize(
    objective: Objective,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    memory: int = 10,
    stopping: Stopping = _USUAL,
    schedule: Schedule = _AT_ONCE,
) -> Minimum:
    r"""Minimize over a box by projected L-BFGS, each row its own problem.

    Coordinates at a bound whose slope points outward are held; the others move by the two-loop
    recursion over what the coordinates that were free then met, along the projection of y + t d.
    Where that step is refused (Armijo) the direction takes in what it met, then t is shortened.
    A row is done when its projected gradient or its gain is small, or when neither its
    quasi-Newton direction nor the steepest one can be followed.

    Args:
        objective: Points (k, D) and their rows (k,) to values (k,) and gradients (k, D).
        start: Starts, (n, D).
        low: Lower bounds, (n, D); may be -inf.
        high: Upper bounds, (n, D); may be inf.
        memory: Pairs kept.
        stopping: When a row is done.
        schedule: Which rows are at work together, and which one starts where.

    References:
        Nocedal & Wright, 2006, Algorithm 7.4; Bertsekas, 1982 (two-metric projection);
        Byrd et al., 1995 (scipy's L-BFGS-B, the oracle of the tests).

    Examples:
        >>> import torch
        >>> from robustvae.perturb.lbfgs import minimize
        >>> def bowl(y, rows): return (y - 2).square().sum(1), 2 * (y - 2)
        >>> box = torch.zeros(1, 3), torch.ones(1, 3)
        >>> minimize(bowl, torch.zeros(1, 3), *box).y
        tensor([[1., 1., 1.]])
    """
    problem = (start, low, high)
    with loop(f"minimize {memory} {stopping.steps}", *problem) as place:
        if place.result is None:
            minimum = _minimized(place, objective, problem, memory, stopping, schedule)
            place.finish(*vars(minimum).values())
    return Minimum(*place.result)


def _minimized(
    place: Loop,
    objective: Objective,
    problem: tuple[Tensor, Tensor, Tensor],
    memory: int,
    stopping: Stopping,
    schedule: Schedule,
) -> Minimum:
    start, low, high = problem
    n, device = len(start), start.device
    scale = start.new_full((n,), 1e-30) if stopping.scale is None else stopping.scale
    after = schedule.after
    after = torch.full((n,), -1, device=device) if after is None else after
    waiting = torch.ones(n, dtype=torch.bool, device=device)
    over = ~waiting
    result = Minimum(
        torch.minimum(torch.maximum(start, low), high),
        start.new_full((n,), torch.inf),
        start.new_zeros(n),
        torch.zeros(n, dtype=torch.long, device=device),
        torch.zeros_like(over),
    )
    seats, next_row = _Seats.empty(min(n, schedule.together or n), start, memory), 0
    if place.content is not None:  # of a run that was stopped
        next_row, waiting, over, places, outcome = place.content
        seats, result = _Seats(*places), Minimum(*outcome)
    rounds = itertools.count(place.begin)
    while True:

        def copies(next_row: int = next_row) -> list[Any]:
            groups = [vars(seats).values(), vars(result).values()]
            clones = [[tensor.clone() for tensor in group] for group in groups]
            return [next_row, waiting.clone(), over.clone(), *clones]

        place.offer(next(rounds), copies)
        now = seats.first(next_row)
        steep = now.downhill.abs()
        flat = steep.amax(1) <= stopping.gradient_tolerance
        now.converged.logical_or_(flat & (now.evaluations > 0))
        left = now.converged | (now.evaluations >= stopping.steps)
        if not next_row or bool(left.any()):
            row_numbers = now.row[left]
            result.y[row_numbers], result.value[row_numbers] = now.y[left], now.value[left]
            result.gradient_norm[row_numbers] = now.gradient_norm[left]
            result.evaluations[row_numbers] = now.evaluations[left]
            result.converged[row_numbers] = now.converged[left]
            over[row_numbers] = True
            rows = (waiting & ((after < 0) | over[after])).nonzero().squeeze(1)
            rows = rows[: len(seats.row) - next_row + len(row_numbers)]
            waiting[rows] = False
            begin = torch.where(after[rows] < 0, rows, after[rows])
            next_row = seats.hand_over(left, rows, result.y[begin], low[rows], high[rows])
            if not next_row:
                return result
            continue

        direction = _two_loop(now)
        slope = torch.linalg.vecdot(direction, now.downhill)
        poor = slope <= 1e-10 * torch.linalg.vecdot(now.downhill, now.downhill)
        direction[poor] = now.downhill[poor]
        careful = (1 / steep.sum(1).clamp_min(1e-30)).clamp_max(1)
        first = torch.where((now.newest < 0) | poor, careful, 1.0)
        now.length.copy_(torch.where(now.length > 0, now.length, first))

        trial = torch.addcmul(now.y, now.length.unsqueeze(1), direction)
        trial = trial.clamp_(now.low, now.high)
        value, gradient = objective(trial, now.row)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        now.gradient_norm.copy_(torch.maximum(now.gradient_norm, norm))
        step, change = trial - now.y, gradient - now.gradient
        prediction = torch.linalg.vecdot(now.gradient, step)
        good = (value <= now.value + _ARMIJO * prediction) & (prediction < 0)
        good |= now.evaluations == 0
        now.evaluations.add_(1)
        against = torch.maximum(torch.maximum(now.value.abs(), value.abs()), scale[now.row])
        small = good & (now.value - value <= stopping.value_tolerance * against)
        now.stalled.copy_(torch.where(good & ~small, 0, now.stalled + small))
        now.converged.logical_or_(now.stalled >= 3)

        bad = (~good).nonzero().squeeze(1)
        excess = (value - now.value - prediction)[bad].nan_to_num(torch.inf).clamp_min(1e-30)
        share = (-prediction[bad] / (2 * excess)).clamp(0.1, 0.5).nan_to_num(0.1)
        shorter = now.length[bad] * share
        is_shortest = step[bad].abs().amax(1) <= _SHORTEST * (1 + now.y[bad].abs().amax(1))
        is_shortest |= shorter <= _SHORTEST
        now.length.zero_()
        # what a refused step tells of the curvature turns the direction; a second is shortened
        now.length[bad] = shorter.where(now.refused[bad] & ~is_shortest, 0)
        is_informative = good | ~now.refused
        now.refused.copy_(~good)
        again = bad[is_shortest]
        is_informative[again] = False
        now.converged[again] = now.newest[again] < 0  # nothing is left to forget
        now.forget(again)
        for current, results in ((now.y, trial), (now.value, value), (now.gradient, gradient)):
            before = current[bad]
            current.copy_(results)
            current[bad] = before
        torch.sub(now.y, now.gradient, out=now.free).clamp_(now.low, now.high)
        now.free.sub_(now.y).ne_(0)
        torch.mul(now.gradient, now.free, out=now.downhill).neg_()
        now.remember(is_informative, step.mul_(now.free), change.mul_(now.free))


@dataclass(eq=False)
class _Seats:
    """The rows at work, the taken seats first."""

    row: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    value: Tensor
    gradient: Tensor
    gradient_norm: Tensor
    free: Tensor  # 0 where a bound is met and the slope points out of the box, 1 elsewhere
    beside: Tensor  # the newest change of slope, and minus the slope, both where free
    pairs: Tensor  # a ring of steps, and one of changes of slope
    products: Tensor  # of the pairs with the changes
    newest: Tensor
    length: Tensor  # of the next step; 0 where it is yet to be set
    evaluations: Tensor
    stalled: Tensor
    refused: Tensor  # whether the last trial point was
    converged: Tensor

    @classmethod
    def empty(cls, seats: int, like: Tensor, memory: int) -> _Seats:
        """Room for so many rows of the width of `like`."""
        pixels = like.shape[1]
        y, low, high, gradient, free = (like.new_zeros(seats, pixels) for _ in range(5))
        value, norm, length = (like.new_zeros(seats) for _ in range(3))
        row, newest, evaluations, stall = (value.long() for _ in range(4))
        beside, pairs = (like.new_zeros(seats, k, pixels) for k in (2, 2 * memory))
        products = like.new_zeros(seats, 2 * memory, memory)
        return cls(
            row, y, low, high, value, gradient, norm, free, beside, pairs, products, newest,
            length, evaluations, stall, value.bool(), value.bool(),
        )  # fmt: skip

    @property
    def downhill(self) -> Tensor:
        """Minus the slope where free."""
        return self.beside[:, 1]

    def forget(self, which: Tensor) -> None:
        """No pairs for these."""
        self.pairs[which] = 0
        self.products[which] = 0
        self.beside[which, 0] = 0
        self.newest[which] = -1

    def remember(self, which: Tensor, step: Tensor, change: Tensor) -> None:
        """A pair for those of these that curve upwards."""
        curve, length = torch.linalg.vecdot(step, change), torch.linalg.vecdot(change, change)
        index = (which & (curve > 1e-10 * length)).nonzero().squeeze(1)
        self.newest[index] += 1
        memory = self.pairs.shape[1] // 2
        slot = 2 * memory * index + self.newest[index] % memory
        ring, change = self.pairs.flatten(0, 1), change.index_select(0, index)
        ring.index_copy_(0, slot, step.index_select(0, index))
        ring.index_copy_(0, slot + memory, change)
        self.beside.flatten(0, 1).index_copy_(0, 2 * index, change)

    def first(self, taken: int) -> _Seats:
        """Views of the first seats."""
        return _Seats(*(field[:taken] for field in vars(self).values()))

    def hand_over(self, left: Tensor, row: Tensor, y: Tensor, low: Tensor, high: Tensor) -> int:
        """Give the seats of who left to new rows, close the gaps; the seats then taken."""
        before, empty = len(left), left.nonzero().squeeze(1)
        next_row = before - len(empty) + len(row)
        numbers = torch.arange(before, max(before, next_row), device=left.device)
        new = torch.cat([empty[: len(row)], numbers])
        gaps = empty[len(row) :]
        gaps = gaps[gaps < next_row]
        last = torch.arange(min(before, next_row), before, device=left.device)
        last = last[~left[last]]
        for field in vars(self).values():
            field[gaps] = field[last]
            field[new] = 0
        self.row[new], self.y[new], self.low[new], self.high[new] = row, y, low, high
        self.value[new], self.newest[new] = torch.inf, -1
        return next_row


def _two_loop(now: _Seats) -> Tensor:
    """The L-BFGS inverse Hessian of each row times `downhill`, within the free coordinates.

    The recursion runs over coefficients: the pairs are read twice, whatever their number.
    """
    memory = now.pairs.shape[1] // 2
    turn_products, along = (now.beside @ now.pairs.mT).unbind(1)
    at = now.newest % memory
    columns = at.view(-1, 1, 1).expand(-1, 2 * memory, 1)
    now.products.scatter_(2, columns, turn_products.unsqueeze(2))
    rows = (memory + at).view(-1, 1, 1).expand(-1, 1, memory)
    now.products.scatter_(1, rows, turn_products[:, memory:].unsqueeze(1))

    slots = torch.arange(memory, device=at.device)
    order = (at.unsqueeze(1) + 1 + slots) % memory  # the newest last
    both = torch.cat([order, order + memory], 1)
    pick = both.unsqueeze(2) * memory + order.unsqueeze(1)
    products = now.products.flatten(1).gather(1, pick.flatten(1)).view_as(now.products)
    st, tt = products[:, :memory], products[:, memory:]
    along = along.gather(1, both)
    curve, length = st.diagonal(dim1=1, dim2=2), tt.diagonal(dim1=1, dim2=2)
    empty = curve <= 0
    # the recursions over the pairs are triangular systems
    system = st.triu()
    system.diagonal(dim1=1, dim2=2).add_(empty)
    alpha = _solved(system, along[:, :memory], upper=True)
    scale = (curve[:, -1:] / length[:, -1:]).where(~empty[:, -1:], 1.0)
    changes = -alpha * scale
    inner = scale * along[:, memory:] + (tt @ changes.unsqueeze(2)).squeeze(2)
    steps = _solved(system.mT, curve * alpha - inner, upper=False)
    weights = torch.empty_like(along).scatter_(1, both, torch.cat([steps, changes], 1))
    combination = (weights.unsqueeze(1) @ now.pairs).squeeze(1)
    return combination.addcmul_(scale, now.downhill).mul_(now.free)


def _solved(system: Tensor, right: Tensor, *, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(system, right.unsqueeze(2), upper=upper).squeeze(2)


@register("search", "lbfgs")
@final
@dataclass(frozen=True)
class LBFGS:
    """L-BFGS from several starts within the ball, all inputs x restarts in chunks.

    An l-infinity ball cut by the pixel range is a box, which is kept exactly. In an l2 ball the
    search runs over the box and every candidate is projected on the ball before it is scored; the
    same for l0, where a start seldom leaves the values that it began with: other searches find
    more there.

    Args:
        steps: Most evaluations of a start.
        restarts: Starts for each input, uniform in the ball.
        memory: Pairs kept.
        chunk: Rows (inputs x restarts) minimized together.

    Raises:
        RangeError: A count below 1.

    Examples:
        >>> from robustvae.perturb import LBFGS, Ball
        >>> from robustvae.seeding import generator
        >>> import torch
        >>> x = torch.full((1, 1, 2, 2), 0.5)
        >>> bright = lambda y, rows: y.flatten(1).sum(1)
        >>> LBFGS(restarts=1)(bright, x, Ball("linf", 0.1), generator=generator(0)).y.max()
        tensor(0.6000)
    """

    steps: int = 50
    restarts: int = 5
    memory: int = 10
    chunk: int = 250

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("steps", "restarts", "memory", "chunk"):
            check_count(getattr(self, name), name)

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximize `score` around each of `x`."""
        seeds = by_row(generator, "lbfgs", x).streams
        size = max(1, self.chunk // self.restarts)
        return join(
            [self._part(score, x, ball, part, seeds) for part in torch.arange(len(x)).split(size)]
        )

    def _part(
        self, score: Score, x: Tensor, ball: Ball, inputs: Tensor, seeds: list[torch.Generator]
    ) -> SearchResult:
        rows = inputs.repeat_interleave(self.restarts).to(x.device)
        center, around = x[rows], ball.rows(rows)
        start = torch.cat(
            [
                ball.rows(torch.tensor([i])).sample(x[i : i + 1], generator=seed)
                for i in inputs.tolist()
                for seed in row_generators(seeds[i], "restart", range(self.restarts))
            ]
        )
        low, high = bounds(center, around)
        is_round = ball.norm != "linf"

        def project(flat: Tensor, k: Tensor) -> Tensor:
            y = flat.view(-1, *x.shape[1:])
            return around.rows(k).project(center[k], y) if is_round else y

        def objective(flat: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = evaluate(lambda y, r: score(project(y, k), r), flat, rows[k])
            return -value, -slope if slope is not None else torch.zeros_like(flat)

        minimum = minimize(
            objective,
            start.flatten(1),
            low,
            high,
            memory=self.memory,
            stopping=Stopping(steps=self.steps),
        )
        y = project(minimum.y, torch.arange(len(rows), device=x.device))
        shape = (len(inputs), self.restarts)
        best = first_best(-minimum.value.view(shape))
        pick = torch.arange(len(inputs), device=x.device) * self.restarts + best
        norm = minimum.gradient_norm.view(shape)
        return SearchResult(
            y[pick],
            -minimum.value[pick],
            norm.amax(1),
            (norm == 0).to(x).mean(1),
            minimum.evaluations.view(shape).sum(1),
        )


def bounds(x: Tensor, ball: Ball) -> tuple[Tensor, Tensor]:
    """The least and greatest value of every pixel in ball and box, (B, D) each."""
    flat = x.flatten(1)
    if ball.norm == "l0":  # whichever values change, each may take any of the box
        far = torch.full_like(flat, torch.inf)
        return ball.clip(-far), ball.clip(far)
    radius = ball.radii(x).unsqueeze(1)
    return ball.clip(flat - radius), ball.clip(flat + radius)
