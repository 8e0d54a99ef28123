"""L-BFGS with box constraints, every row of the batch by itself: a step is one evaluation for all.

A row that refuses its trial point shortens it at the next evaluation while its neighbours go on,
so no row waits for another's line search, and rows that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.errors import check_count
from robustvae.perturb.ascent import Score, SearchResult, evaluate, join
from robustvae.perturb.ball import Ball
from robustvae.seeding import split

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
_ARMIJO = 1e-4
_SHORTEST = 1e-12


@final
@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a batched minimisation ended, one row per start.

    Attributes:
        y: Points, (n, D).
        value: Objective there, (n,).
        gradient_norm: Greatest 2-norm of a gradient met, (n,).
        evaluations: Objective and gradient evaluations, (n,) int.
        converged: Whether a tolerance was met before `steps` ran out, (n,) bool.
    """

    y: Tensor
    value: Tensor
    gradient_norm: Tensor
    evaluations: Tensor
    converged: Tensor


def minimise(
    objective: Objective,
    start: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    steps: int = 200,
    memory: int = 10,
    gradient_tolerance: float = 1e-5,
    value_tolerance: float = 1e-9,
    scale: Tensor | None = None,
) -> Minimum:
    r"""Minimise over a box by projected L-BFGS, each row its own problem.

    Coordinates at a bound whose slope points outward are held; the others move by the two-loop
    recursion over their own part of the history, along the projection of y + t d, with t found by
    backtracking (Armijo). A row is done when its projected gradient or its gain is small, or when
    neither its quasi-Newton direction nor the steepest one can be followed.

    Args:
        objective: Points (k, D) and their rows (k,) to values (k,) and gradients (k, D).
        start: Starts, (n, D).
        low: Lower bounds, (n, D); may be -inf.
        high: Upper bounds, (n, D); may be inf.
        steps: Most evaluations of a row.
        memory: Pairs kept.
        gradient_tolerance: Greatest entry of the projected gradient at which a row is done.
        value_tolerance: Relative gain at which a row is done, if three in a row are no larger.
        scale: Least size of a value, (n,), that its gain is held against; 0 where it is None.

    References:
        Nocedal & Wright, 2006, Algorithm 7.4; Bertsekas, 1982 (two-metric projection);
        Byrd et al., 1995 (scipy's L-BFGS-B, the oracle of the tests).

    Examples:
        >>> import torch
        >>> from robustvae.perturb.lbfgs import minimise
        >>> def bowl(y, rows): return (y - 2).square().sum(1), 2 * (y - 2)
        >>> box = torch.zeros(1, 3), torch.ones(1, 3)
        >>> minimise(bowl, torch.zeros(1, 3), *box).y
        tensor([[1., 1., 1.]])
    """
    n, pixels = start.shape
    scale = start.new_full((n,), 1e-30) if scale is None else scale
    y = torch.minimum(torch.maximum(start, low), high)
    alive = torch.arange(n, device=start.device)
    value, gradient = objective(y, alive)
    norm = torch.linalg.vector_norm(gradient, dim=1)
    evaluations = torch.ones(n, dtype=torch.long, device=start.device)
    converged = torch.zeros(n, dtype=torch.bool, device=start.device)
    pairs = start.new_zeros(n, 2 * memory, pixels)  # a ring of steps, and one of slopes' changes
    newest = torch.full_like(evaluations, -1)
    direction = torch.zeros_like(y)
    length = start.new_ones(n)
    steepest = torch.zeros_like(converged)
    stalled = torch.zeros_like(evaluations)
    fresh = alive  # rows that need a direction

    for _ in range(steps - 1):
        free = _free(y[fresh], gradient[fresh], low[fresh], high[fresh])
        downhill = torch.where(free, -gradient[fresh], 0)
        done = downhill.abs().amax(1) <= gradient_tolerance
        converged[fresh[done]] = True
        fresh, free, downhill = fresh[~done], free[~done], downhill[~done]
        if len(fresh):
            step = _two_loop(downhill, free, pairs, newest, fresh)
            slope = (step * downhill).sum(1)
            poor = (slope <= 1e-10 * downhill.square().sum(1)) | steepest[fresh]
            step = torch.where(poor.unsqueeze(1), downhill, step)
            direction[fresh] = step
            naive = (newest[fresh] < 0) | poor
            careful = 1 / downhill.abs().sum(1).clamp_min(1e-30)
            length[fresh] = torch.where(naive, careful.clamp_max(1), torch.ones_like(careful))
        alive = alive[~converged[alive]]
        if not len(alive):
            break

        trial = y[alive] + length[alive].unsqueeze(1) * direction[alive]
        trial = torch.minimum(torch.maximum(trial, low[alive]), high[alive])
        new_value, new_gradient = objective(trial, alive)
        evaluations[alive] += 1
        norm[alive] = torch.maximum(norm[alive], torch.linalg.vector_norm(new_gradient, dim=1))
        step = trial - y[alive]
        promised = (gradient[alive] * step).sum(1)
        good = (new_value <= value[alive] + _ARMIJO * promised) & (promised < 0)

        rows, s = alive[good], step[good]
        t = new_gradient[good] - gradient[rows]
        curved = (s * t).sum(1) > 1e-10 * t.square().sum(1)
        kept = rows[curved]
        newest[kept] += 1
        slot = newest[kept] % memory
        pairs[kept, slot] = s[curved]
        pairs[kept, memory + slot] = t[curved]
        gain = value[rows] - new_value[good]
        against = torch.maximum(value[rows].abs(), new_value[good].abs())
        against = torch.maximum(against, scale[rows])
        stalled[rows] = torch.where(gain <= value_tolerance * against, stalled[rows] + 1, 0)
        converged[rows] |= stalled[rows] >= 3
        y[rows], value[rows], gradient[rows] = trial[good], new_value[good], new_gradient[good]
        steepest[rows] = False

        bad = alive[~good]
        excess = (new_value[~good] - value[bad] - promised[~good]).nan_to_num(torch.inf)
        share = (-promised[~good] / (2 * excess.clamp_min(1e-30))).clamp(0.1, 0.5)
        length[bad] *= share.nan_to_num(0.1)
        spent = step[~good].abs().amax(1) <= _SHORTEST * (1 + y[bad].abs().amax(1))
        spent |= length[bad] <= _SHORTEST
        hopeless = bad[spent & steepest[bad]]
        converged[hopeless] = True
        again = bad[spent & ~steepest[bad]]
        steepest[again] = True
        pairs[again] = 0
        newest[again] = -1
        fresh = torch.cat([rows[~converged[rows]], again])
    return Minimum(y, value, norm, evaluations, converged)


def _free(y: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ~(((y <= low) & (gradient > 0)) | ((y >= high) & (gradient < 0)))


def _two_loop(
    downhill: Tensor, free: Tensor, pairs: Tensor, newest: Tensor, rows: Tensor
) -> Tensor:
    """The L-BFGS inverse Hessian of some rows times `downhill`, within the free coordinates.

    The recursion runs over coefficients: the pairs are read three times, whatever their number.
    """
    memory = pairs.shape[1] // 2
    age = torch.arange(memory - 1, -1, -1, device=rows.device)
    order = (newest[rows].unsqueeze(1) - age) % memory  # the newest last
    held = pairs[rows.unsqueeze(1), torch.cat([order, order + memory], 1)]
    t = held[:, memory:].mul_(free.unsqueeze(1))  # products need the mask on one side alone
    products = held @ t.mT  # of all with the changes t
    along = (held @ downhill.unsqueeze(2)).squeeze(2)
    st, tt = products[:, :memory], products[:, memory:]
    own, length = st.diagonal(dim1=1, dim2=2), tt.diagonal(dim1=1, dim2=2)
    usable = own > 1e-10 * length.clamp_min(1e-30)
    rho = torch.where(usable, 1 / own.where(usable, 1.0), 0)
    steps, changes = torch.zeros_like(rho), torch.zeros_like(rho)  # coefficients of s and t
    for j in reversed(range(memory)):
        changes[:, j] = -rho[:, j] * (along[:, j] + (st[:, j] * changes).sum(1))
    scale = torch.ones_like(rho[:, 0])
    for j in range(memory):  # the newest usable pair sets the scale
        scale = torch.where(usable[:, j], own[:, j] / length[:, j].clamp_min(1e-30), scale)
    alpha, changes = -changes, changes * scale.unsqueeze(1)
    inner = scale.unsqueeze(1) * along[:, memory:] + (tt @ changes.unsqueeze(2)).squeeze(2)
    for j in range(memory):
        beta = rho[:, j] * (inner[:, j] + (st[:, :, j] * steps).sum(1))
        steps[:, j] = alpha[:, j] - beta
    made = torch.cat([steps, changes], 1).unsqueeze(1) @ held
    return scale.unsqueeze(1) * downhill + made.squeeze(1) * free


@final
@dataclass(frozen=True)
class LBFGS:
    """L-BFGS from several starts within the ball, all inputs x restarts in chunks.

    An l-infinity ball cut by the pixel range is a box, which is kept exactly. In an l2 ball the
    search runs over the box and every candidate is projected on the ball before it is scored.

    Args:
        steps: Most evaluations of a start.
        restarts: Starts for each input, uniform in the ball.
        memory: Pairs kept.
        chunk: Rows (inputs x restarts) minimised together.

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
        """Refuse what is no search."""
        for name in ("steps", "restarts", "memory", "chunk"):
            check_count(getattr(self, name), name)

    def __call__(
        self, score: Score, x: Tensor, ball: Ball, *, generator: torch.Generator
    ) -> SearchResult:
        """Maximise `score` around each of `x`."""
        seeds = split(generator, len(x))
        size = max(1, self.chunk // self.restarts)
        return join(
            [self._part(score, x, ball, part, seeds) for part in torch.arange(len(x)).split(size)]
        )

    def _part(
        self, score: Score, x: Tensor, ball: Ball, inputs: Tensor, seeds: list[torch.Generator]
    ) -> SearchResult:
        rows = inputs.repeat_interleave(self.restarts).to(x.device)
        centre, around = x[rows], ball.rows(rows)
        start = torch.cat(
            [
                ball.rows(torch.full((self.restarts,), i)).sample(
                    x[i : i + 1].expand(self.restarts, *x.shape[1:]), generator=seeds[i]
                )
                for i in inputs.tolist()
            ]
        )
        low, high = bounds(centre, around)
        curved = ball.norm == "l2"

        def project(flat: Tensor, k: Tensor) -> Tensor:
            y = flat.view(-1, *x.shape[1:])
            return around.rows(k).project(centre[k], y) if curved else y

        def objective(flat: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            value, slope = evaluate(lambda y, r: score(project(y, k), r), flat, rows[k])
            return -value, -slope if slope is not None else torch.zeros_like(flat)

        found = minimise(
            objective, start.flatten(1), low, high, steps=self.steps, memory=self.memory
        )
        y = project(found.y, torch.arange(len(rows), device=x.device))
        shape = (len(inputs), self.restarts)
        best = found.value.view(shape).argmin(1)
        pick = torch.arange(len(inputs), device=x.device) * self.restarts + best
        norm = found.gradient_norm.view(shape)
        return SearchResult(
            y[pick],
            -found.value[pick],
            norm.amax(1),
            (norm == 0).to(x).mean(1),
            found.evaluations.view(shape).sum(1),
        )


def bounds(x: Tensor, ball: Ball) -> tuple[Tensor, Tensor]:
    """The least and greatest value of every pixel in ball and box, (B, D) each."""
    radius = ball.radii(x).unsqueeze(1)
    flat = x.flatten(1)
    return ball.clip(flat - radius), ball.clip(flat + radius)
