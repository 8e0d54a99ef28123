"""Minimum-norm walks along the boundary between what holds and what fails.

Every step turns towards the gradient of a surrogate and changes its length to where the surrogate,
by its slope, meets the threshold. The threshold is calibrated by draws, and draws order the ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.certificates.question import Question
from robustvae.errors import check_count, check_positive, check_probability
from robustvae.perturb import Ball, SquareSearch
from robustvae.perturb.ascent import evaluate, start_shares
from robustvae.robustness.betting import growth
from robustvae.robustness.displacement import Noise, Ruler
from robustvae.robustness.rays import NEAR, Rays, meets
from robustvae.seeding import RowGenerator, by_row, randn, row_generators, split

_CALIBRATING = 64  # antithetic draws that set a threshold: each stands for several independent ones
_LOOKS = 5  # at perturbations that should fail further out
_FEW = 16  # of them, which choose among known perturbations
SURROGATE_DRAWS = 4  # noises in a surrogate whose spread moves; the draws correct what they miss
# noises of a defense that draws: each step of a walk takes the next few of them, so that it is not
# led by what four noises have in common
_BANK = 64
_ROWS = 250  # candidates evaluated together: a batch that fits a processor's cache
_TURN = (1.5, 0.08)  # share of the new direction in a step, first and last: large steps find, small
# ones settle
_SQUARES = 30  # candidates of a search by squares
FAR = 0.3  # of the largest size: margins are seldom nearer to it
_STRIDE = 0.5  # the most by which a step may change the length, as a share of it
_FINEST = 2  # times the choosing draws, at the end: where a test is made is worth a few draws
_SOLVING = 2  # evaluations of the draws on a ray: regula falsi on a nearly straight function
_TRIED = 96  # order statistics looked at: they place a quantile to half a percent
_AIM = 0.6  # share of a test's draws after which it should be sure: chance may take the rest
_BEHIND = (1.0, 2.0, 4.0)  # times the way to the boundary: what is undecided there should fail
_HALVINGS = 6  # of the way to what fails surely
_SUREST = 3  # of all that is known, asked by more draws
_CLEARLY = 1.1  # times r: tolerances by few draws that leave little doubt
FIRST_RISK = 0.6  # of the risk, for the first test of a point


@final
@dataclass(frozen=True)
class Budget:
    """What a margin may cost, for each input and threat model.

    Args:
        starts: Random directions that the search begins from.
        steps: Gradients of each start; the better half go on for as many again.
        draws: Fresh draws after which a deciding test should be sure. It stops as soon as it is,
            and gives up where it will not be.
        choosing: Draws, common to all perturbations of an input, that place the boundary.
        largest: Largest size, in pixel units; None for the diameter of the pixel cube, sqrt(D)
            for l2 and 1 for linf.
        confidence: With which each input's value is truly above its margin, in (0, 1); of all
            threat models asked together.
        chunk: Rows (inputs x draws) decoded at once; None for 2^18 pixels' worth.
        explored: Further starts, each the end of a short search by squares, without gradients, of
            the size that the walks from the random ones reach; 0 for none. A model that was trained
            to bear noise has no slope worth following where noise would start.

    Raises:
        RangeError: A count, size or confidence out of range.

    Examples:
        >>> from robustvae.robustness import Budget
        >>> Budget(steps=8).draws
        1500
    """

    starts: int = 6
    steps: int = 12
    draws: int = 1500
    choosing: int = 128
    largest: float | None = None
    confidence: float = 0.95
    chunk: int | None = None
    explored: int = 4

    def __post_init__(self) -> None:
        """Validate the fields."""
        for name in ("starts", "steps", "draws", "choosing"):
            check_count(getattr(self, name), name)
        check_count(self.explored, "explored", least=0)
        if self.largest is not None:
            check_positive(self.largest, "largest")
        check_probability(self.confidence, "confidence")
        if self.chunk is not None:
            check_count(self.chunk, "chunk")


@dataclass(eq=False)
class _Ends:
    """Where walks ended, the smallest first: points (P, starts, ...), sizes, greatest slopes."""

    y: Tensor
    size: Tensor
    slope: Tensor

    def beside(self, other: _Ends) -> _Ends:
        """Both walks' ends, in their order."""
        size, order = torch.cat([self.size, other.size], 1).sort(1)
        every = torch.arange(len(size), device=size.device).unsqueeze(1)
        ends = torch.cat([self.y, other.y], 1)[every, order]
        return _Ends(ends, size, torch.maximum(self.slope, other.slope))


@final
@dataclass(eq=False)
class Trail:
    """The best direction of each problem (threat model x input) and where its boundary lies.

    `point(share)` is the perturbation at a share of the way from x to y.
    """

    box: Tensor  # (P,) bool
    inputs: Tensor  # (P,) the input of each problem
    x: Tensor  # (P, C, H, W)
    y: Tensor
    share: Tensor  # of the way at which the draws put the target probability
    failing: Tensor  # whether the draws saw a failure there
    blind: Tensor  # whether no gradient but 0 was met
    suspect: Tensor  # whether the input itself seems to fail

    def point(self, share: Tensor, which: Tensor | None = None) -> Tensor:
        """The perturbed images at these shares, of all problems or of some."""
        which = torch.arange(len(self.y), device=self.y.device) if which is None else which
        x, y = self.x[which], self.y[which]
        position = x + share.view(-1, *(1,) * (x.ndim - 1)).to(x) * (y - x)
        inside = self.box[which].view(-1, *(1,) * (x.ndim - 1))
        return torch.where(inside, position.clamp(0, 1), position)


@final
class Walk:
    """Minimum-norm walks of all problems and starts in one batch."""

    def __init__(
        self,
        ruler: Ruler,
        question: Question,
        budget: Budget,
        boxes: tuple[bool, ...],
        largest: float,
        generator: torch.Generator,
    ) -> None:
        self.ruler, self.question, self.budget, self.largest = ruler, question, budget, largest
        self.boxes, x = boxes, ruler.x
        # the log capital of a test that passes, the price of five stakes, and some for chance
        risk = FIRST_RISK * (1 - budget.confidence) / len(boxes)
        self.needed = -math.log(risk) + 2.5
        batch = len(x)
        self.inputs = torch.arange(batch, device=x.device).repeat(len(boxes))
        self.box = torch.tensor(boxes, device=x.device).repeat_interleave(batch)
        coarse, fine, finest, smooth = split(generator, 4)
        self.coarse = ruler.noise(_CALIBRATING, coarse, antithetic=True)
        self.few = self.coarse.part(0, _FEW)
        self.fine = ruler.noise(budget.choosing, fine, antithetic=True)
        self.finest = ruler.noise(_FINEST * budget.choosing, finest, antithetic=True)
        # the encoder's own spread is averaged well by few draws, a defense's noise on the input not
        count = SURROGATE_DRAWS if ruler.samples_posterior else _BANK
        self.smooth = ruler.noise(count, smooth)
        everyone = torch.arange(batch, device=x.device)
        self.rest = self.reach(x, everyone, self.fine)
        r = float(question.r)  # a huge whole number overflows when squared
        exact = not ruler.samples_posterior or ruler.displacement != "centered"
        # noise across the mean's displacement adds its square; below 0.3 r the draws will tell
        room = (r**2 - self.rest.square()).clamp_min((0.3 * r) ** 2).sqrt()
        self.threshold = (torch.full_like(room, r) if exact else room).repeat(len(boxes))

    def reach(
        self, y: Tensor, rows: Tensor, noise: Noise, read: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """The largest tolerance at which a test of these perturbations would pass, (n,).

        It stands for the m-quantile of ||Delta||, lower by what the test needs to be sure: a
        perturbation is worth testing where it exceeds r. 0 where no tolerance would do. `read`
        takes another number from the distances, (draws, n).
        """
        size = max(1, self.ruler.rows_at_once // noise.draws)
        read = self.passing if read is None else read
        twins = _twins(y, rows)
        if twins is not None and bool(twins.any()):
            # what both threat models ask about the same point is drawn once
            half = len(twins)
            asked = torch.cat([torch.ones_like(twins), ~twins])
            some = self.reach(y[asked], rows[asked], noise, read)
            value = some.new_empty(len(y))
            value[asked] = some
            value[half:] = torch.where(twins, value[:half], value[half:])
            return value
        with torch.no_grad():
            parts = [
                read(self.ruler.distances(part, which, noise))
                for part, which in zip(y.split(size), rows.split(size), strict=True)
            ]
        return torch.cat(parts)

    def middle(self, distances: Tensor) -> Tensor:
        """The m-quantile itself of distances (draws, n), by however few draws."""
        place = max(1, math.ceil(self.question.m * len(distances)))
        return distances.kthvalue(place, 0).values

    def passing(self, distances: Tensor) -> Tensor:
        """As `reach`, of distances (draws, n) whose neighbors are antithetic pairs."""
        if not self.ruler.is_random:
            return distances[0]
        draws, m = len(distances), self.question.m
        pair = 2 if self.ruler.antithetic and draws % 2 == 0 else 1
        pairs = distances.T.contiguous().unflatten(1, (-1, pair))
        ascending = distances.sort(0).values
        # the order statistics that can pass: none above the m-quantile does, but for chance
        last = min(draws, math.ceil((m + 0.05) * draws))
        first = max(0, math.floor((m - 0.3) * draws))
        every = max(1, (last - first) // _TRIED)
        thresholds = ascending[first:last:every].T.contiguous()
        nearer, further = pairs.amin(2).sort(1).values, pairs.amax(2).sort(1).values
        one = torch.searchsorted(nearer, thresholds, right=True)
        both = torch.searchsorted(further, thresholds, right=True)
        growths = growth(both, one - both, pairs.shape[1] - one, m)
        passes = growths >= self.needed / max(1.0, self.budget.draws * _AIM / pair)
        place = (
            passes.int() * torch.arange(1, thresholds.shape[1] + 1, device=thresholds.device)
        ).amax(1)
        best = thresholds.gather(1, (place.clamp_min(1) - 1).unsqueeze(1)).squeeze(1)
        return torch.where(place > 0, best, torch.zeros_like(best))

    def search(self, candidates: Tensor | None, generator: torch.Generator) -> Trail:
        """The best direction of each problem."""
        budget, x = self.budget, self.ruler.x[self.inputs]
        problems, starts = len(x), budget.starts
        streams = by_row(generator, "starts", self.ruler.x)
        y = self._starts(streams)
        known = None
        if candidates is not None:
            known = candidates.repeat(1, len(self.boxes), *(1,) * (x.ndim - 1)).transpose(0, 1)
            known = self._nearest(x, self._clip(known), -(-starts // 2))
            # beside the random ones: what is known often lies in one valley, and not the lowest
            y = torch.cat([y, known], 1)
        first = self._walk(x, y, self.threshold, (0.0, 0.5))
        if budget.explored:
            explored = self._explored(x, first.size[:, 0], streams)
            first = first.beside(self._walk(x, explored, self.threshold, (0.0, 0.5)))
        slope = first.slope
        self._calibrate(x, first.y[:, 0])
        ahead = first.y[:, : -(-first.y.shape[1] // 2)]
        if len(self.boxes) == 2:
            # what failed in the box fails without it: the unconstrained walk starts there too
            batch = problems // 2
            also = torch.cat([ahead[:batch, :1], ahead[:batch, :1]])
            ahead = torch.cat([ahead, also], 1)
        second = self._walk(x, ahead, self.threshold, (0.5, 1.0))
        slope = torch.maximum(slope, second.slope)
        pool = second.y[:, :2]
        if known is not None:
            pool = torch.cat([pool, known[:, :1]], 1)
        return self._place(x, pool, slope)

    def _nearest(self, x: Tensor, known: Tensor, count: int) -> Tensor:
        """Of the known perturbations of each problem those nearest to failing, (P, count, ...).

        Each is moved along its ray to where a few draws say that r is met. What they say is asked
        again there: on a ray that holds for long and then fails at once, the first guess is short.
        """
        problems, total = known.shape[:2]
        every = torch.arange(problems, device=x.device).unsqueeze(1)
        step = known - x.unsqueeze(1)
        size = size_of(step.flatten(0, 1), self.question.norm).view(problems, total)
        rays = Rays(self.rest[self.inputs].unsqueeze(1).expand(problems, total), self.question.r)
        share = torch.ones_like(size)
        for kept in (2 * count, count):
            ends = self._along(x, step, share)
            rows = self.inputs.repeat_interleave(ends.shape[1])
            value = self.reach(ends.flatten(0, 1), rows, self.few, self.middle).view_as(share)
            rays.note(share, value)
            share = rays.guess()
            keep = rays.lengths(share, size, self.largest).argsort(1)[:, :kept]
            rays, step = rays.part(every, keep), step[every, keep]
            size, share = size[every, keep], rays.look(share[every, keep])
        return self._along(x, step, share)

    def surest(
        self, candidates: Tensor | None, trail: Trail, which: Tensor, below: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """What fails most surely of all that is known of problems `which`, no larger than `below`.

        Known are candidates and the trail. Three points (n, ...) on the way to it, the first where
        failing begins by the fine draws, the last its end; and whether the draws leave hope.
        """
        r, inputs, x = self.question.r, trail.inputs[which], trail.x[which]
        shape = (-1,) + (1,) * (x.ndim - 1)
        points = [trail.point(times * trail.share[which], which) for times in _BEHIND]
        for images in () if candidates is None else candidates:
            inside = trail.box[which].view(shape)
            points.append(torch.where(inside, images[inputs].clamp(0, 1), images[inputs]))
        pool = torch.stack(points, 1)
        count = pool.shape[1]
        step = (pool - x.unsqueeze(1)).flatten(0, 1)
        size = size_of(step, self.question.norm).view(-1, count)
        fits = size <= below.clamp_max(self.largest).unsqueeze(1)
        value = self._tolerances(pool, inputs, fits, self.few, self.middle)
        top = value.topk(min(_SUREST, count), 1).indices
        every = torch.arange(len(which), device=x.device).unsqueeze(1)
        pool, size, fits = pool[every, top], size[every, top], fits[every, top]
        value = self._tolerances(pool, inputs, fits & (value[every, top] > 0), self.coarse)
        # the smallest of those beyond doubt, else the surest
        clear = torch.where(value > _CLEARLY * r, size, math.inf)
        best = torch.where(clear.isfinite().any(1), clear.argmin(1), value.argmax(1))
        far, hope = pool[every[:, 0], best], value[every[:, 0], best] > r
        low, high = torch.zeros_like(below), torch.ones_like(below)
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            near = x + middle.view(shape).to(x) * (far - x)
            value = self._tolerances(near.unsqueeze(1), inputs, hope.unsqueeze(1), self.fine)
            fails = value.squeeze(1) > NEAR * r
            low, high = torch.where(fails, low, middle), torch.where(fails, middle, high)
        ways = (high, high.sqrt(), torch.ones_like(high))
        return [x + way.view(shape).to(x) * (far - x) for way in ways], hope

    def _tolerances(
        self,
        pool: Tensor,
        inputs: Tensor,
        asked: Tensor,
        noise: Noise,
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`reach` of those points (n, count, ...) that are asked, 0 of the others."""
        value = torch.zeros(asked.shape, dtype=pool.dtype, device=pool.device)
        if bool(asked.any()):
            rows = inputs.unsqueeze(1).expand_as(asked)[asked]
            value[asked] = self.reach(pool[asked], rows, noise, read)
        return value

    def _along(self, x: Tensor, step: Tensor, share: Tensor) -> Tensor:
        return self._clip(x.unsqueeze(1) + share.view(*share.shape, *(1,) * (x.ndim - 1)) * step)

    def _explored(self, x: Tensor, size: Tensor, streams: RowGenerator) -> Tensor:
        """Where searches without gradients end at these sizes, (P, explored, C, H, W).

        Their squares are drawn alike for both threat models.
        """
        batch, count = len(self.ruler.x), self.budget.explored
        seeds = [g for s in streams.streams for g in row_generators(s, "explored", range(count))]
        inputs = torch.arange(batch, device=x.device).repeat_interleave(count)
        noise = self.smooth.part(0, SURROGATE_DRAWS)
        size = torch.where(size.isfinite(), size, FAR * self.largest)
        size = size.clamp(1e-9 * self.largest, self.largest)
        ends = []
        for side, box in enumerate(self.boxes):
            which = slice(side * batch, (side + 1) * batch)
            radius = size[which].repeat_interleave(count).to(x)
            ball = Ball(self.question.norm, radius, *((0.0, 1.0) if box else (None, None)))
            found = SquareSearch(steps=_SQUARES, chunk=_ROWS)(
                lambda y, rows: self.ruler.surrogate(y, inputs[rows], noise),
                x[which].repeat_interleave(count, 0),
                ball,
                generator=RowGenerator([seed.clone_state() for seed in seeds]),
            )
            ends.append(found.y.view(batch, count, *x.shape[1:]))
        return torch.cat(ends)

    def _starts(self, streams: RowGenerator) -> Tensor:
        """Random perturbations, (P, starts, C, H, W), the same for both threat models."""
        x, budget = self.ruler.x, self.budget
        share = FAR * start_shares(budget.starts)
        seeds = [
            row_generators(stream, "start", range(budget.starts)) for stream in streams.streams
        ]
        noise = torch.stack(
            [
                torch.stack([randn(*x.shape[1:], like=x, generator=g) for g in local])
                for local in seeds
            ]
        )
        if self.question.norm == "linf":
            unit = noise.sign()
        else:
            unit = noise / torch.linalg.vector_norm(noise.flatten(2), dim=2).view(
                *noise.shape[:2], *(1,) * (x.ndim - 1)
            )
        size = (share * self.largest).view(1, -1, *(1,) * (x.ndim - 1)).to(x)
        y = (x.unsqueeze(1) + size * unit).repeat(len(self.boxes), *(1,) * x.ndim)
        return self._clip(y)

    def _clip(self, y: Tensor) -> Tensor:
        inside = self.box.view(-1, *(1,) * (y.ndim - 1))
        return torch.where(inside, y.clamp(0, 1), y)

    def _walk(self, x: Tensor, y: Tensor, threshold: Tensor, span: tuple[float, float]) -> _Ends:
        """Walk from each start; ends in the order of their predicted sizes."""
        problems, starts = y.shape[:2]
        shape = (-1,) + (1,) * (x.ndim - 1)
        rows = self.inputs.repeat_interleave(starts)
        center = x.repeat_interleave(starts, 0)
        inside = self.box.repeat_interleave(starts)
        level = threshold.repeat_interleave(starts)
        now = y.flatten(0, 1)
        best, size = now.clone(), torch.full_like(level, math.inf)
        slopes = torch.zeros_like(level)
        steps, norm = self.budget.steps, self.question.norm
        low, high = (math.log(turn) for turn in _TURN)

        for k in range(steps):
            value, gradient = self._evaluate(now, rows, k)
            delta = now - center
            reach = size_of(delta, norm).clamp_min(1e-9 * self.largest)
            dual = size_of(gradient, "l1" if norm == "linf" else "l2")
            slopes = torch.maximum(slopes, dual)
            along = (gradient * delta).flatten(1).sum(1) / reach
            # where the ray meets the threshold, by its slope: trusted near it, and where it failed
            gap = level - value
            there = reach + gap / along.clamp_min(1e-12)
            near = (gap.abs() <= 0.1 * level) & ((there / reach - 1).abs() <= 0.2)
            prediction = torch.where(near, there, reach.where(gap <= 0, math.inf))
            better = prediction < size
            best = torch.where(better.view(shape), now, best)
            size = torch.where(better, prediction, size)
            if k == steps - 1:
                break
            # the new length: where the surrogate reaches the threshold by the slope of the better
            # direction, no further than a share of the length now
            climb = torch.maximum(along, 0.5 * dual).clamp_min(1e-12)
            stride = _STRIDE if k > 2 else 2.0  # the first steps have their scale to find
            length = reach + (gap / climb).clamp(-0.5 * reach, stride * reach)
            length = length.clamp(1e-9 * self.largest, self.largest)
            place = span[0] + (span[1] - span[0]) * k / max(1, steps - 1)
            turn = math.exp(low + (high - low) * place)
            if norm == "linf":
                unit, old = gradient.sign(), delta / reach.view(shape)
            else:
                unit = gradient / dual.clamp_min(1e-30).view(shape)
                old = delta / reach.view(shape)
            now = self._step(center, old + turn * unit, length, inside)
        size = size.view(problems, starts)
        order = size.argsort(1)
        every = torch.arange(problems, device=x.device).unsqueeze(1)
        ends = best.view(problems, starts, *x.shape[1:])[every, order]
        return _Ends(ends, size[every, order], slopes.view(problems, starts).amax(1))

    def _step(self, x: Tensor, direction: Tensor, length: Tensor, inside: Tensor) -> Tensor:
        """The point of that length in a direction, in the box where it must be."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        norm = self.question.norm
        if norm == "linf":
            position = x + (length.view(shape) * direction).clamp(
                -length.view(shape), length.view(shape)
            )
            return torch.where(inside.view(shape), position.clamp(0, 1), position)
        full_length = size_of(direction, norm).clamp_min(1e-30).view(shape)
        position = x + length.view(shape) * direction / full_length
        if bool(inside.any()):
            # twice as far, so that the projection fills what the clipped pixels leave over
            far = x[inside] + 2 * (position - x)[inside]
            position[inside] = Ball(norm, length[inside]).project(x[inside], far)
        return position

    def _evaluate(self, y: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        values, slopes = [], []
        noise = self.smooth.part(step * SURROGATE_DRAWS, SURROGATE_DRAWS)
        for part, which in zip(y.split(_ROWS), rows.split(_ROWS), strict=True):
            value, slope = evaluate(
                lambda y, rows: self.ruler.surrogate(y, rows, noise), part, which
            )
            values.append(value)
            slopes.append(torch.zeros_like(part) if slope is None else slope)
        return torch.cat(values), torch.cat(slopes)

    def _calibrate(self, x: Tensor, y: Tensor) -> None:
        """Set each threshold to what the surrogate is where the draws say that r is met."""
        if not self.ruler.is_random:
            return
        with torch.no_grad():
            value = torch.cat(
                [
                    self.ruler.surrogate(part, which, self.smooth)
                    for part, which in zip(y.split(_ROWS), self.inputs.split(_ROWS), strict=True)
                ]
            )
        quantile = self.reach(y, self.inputs, self.coarse)
        r = self.question.r
        square_gap = quantile.square() - value.square()
        distance_left = (r**2 - square_gap).clamp_min(0).sqrt()
        # the same noise across the displacement at r as here; a share of r where that is a NaN
        distance_left = torch.where(
            distance_left > 0.1 * r, distance_left, value * (r / quantile.clamp_min(1e-12))
        )
        usable = quantile.isfinite() & (value > 0)
        self.threshold = torch.where(usable, distance_left, self.threshold)

    def _place(self, x: Tensor, pool: Tensor, slope: Tensor) -> Trail:
        """Order the directions by draws and put the best one's boundary where its draws are."""
        problems, count = pool.shape[:2]
        rest_level = self.rest[self.inputs]
        r, norm = self.question.r, self.question.norm
        flat, rows = pool.flatten(0, 1).clone(), self.inputs.repeat_interleave(count)
        centers, box = x.repeat_interleave(count, 0), self.box.repeat_interleave(count)
        every = torch.arange(problems, device=x.device)
        size = size_of(flat - centers, norm)
        rays = Rays(rest_level.repeat_interleave(count), r)
        share, which = torch.ones_like(size), torch.arange(len(flat), device=x.device)
        for look in range(_LOOKS):
            step = (flat - centers)[which]
            point = centers[which] + share[which].view(-1, *(1,) * (x.ndim - 1)) * step
            inside = box[which].view(-1, *(1,) * (x.ndim - 1))
            point = torch.where(inside, point.clamp(0, 1), point)
            rays.note(share[which], self.reach(point, rows[which], self.coarse), which)
            guess = rays.guess()
            lengths = rays.lengths(guess, size, self.largest)
            best = every * count + lengths.view(problems, count).argmin(1)
            # the shortest is looked at where it should fail, until a look has been near: a ray that
            # holds for long and then fails at once, and one cut short by the range, fail later
            which = best[~rays.seen_near(guess)[best] & lengths[best].isfinite()]
            if look == _LOOKS - 1 or not len(which):
                break
            share[which] = rays.look(guess)[which]
        share = guess
        trail = Trail(
            self.box,
            self.inputs,
            x,
            flat[best],
            share[best].nan_to_num(1.0, 1.0, 1.0),
            torch.zeros_like(self.box),
            slope == 0,
            rest_level > r,
        )
        self._solve(trail, size[best])
        return trail

    def _solve(self, trail: Trail, size: Tensor) -> None:
        """Regula falsi for the share at which the quantile of the fine draws meets r."""
        r, rest_level = self.question.r, self.rest[trail.inputs]
        greatest = (self.largest / size.clamp_min(1e-12)).clamp_min(1e-9)
        below, above = torch.zeros_like(rest_level), torch.full_like(rest_level, math.inf)
        low, high = rest_level.clone(), torch.full_like(rest_level, math.inf)
        share = torch.minimum(trail.share, greatest)
        rounds = _SOLVING if self.ruler.is_random else 8
        everyone = torch.arange(len(share), device=share.device)
        for k in range(rounds):
            noise, which = self.fine, everyone
            if self.ruler.is_random and k < rounds - 1:  # near their boundary one look is enough
                which = everyone[(share > NEAR) | (share < 1 / NEAR)]
            if k == rounds - 1:
                noise = self.finest
            value = torch.full_like(rest_level, math.nan)
            if len(which):
                point = trail.point(share[which], which)
                value[which] = self.reach(point, trail.inputs[which], noise)
            fails = value > r
            above = torch.where(fails & (share < above), share, above)
            high = torch.where(fails & (share == above), value, high)
            below = torch.where((value <= r) & (share > below), share, below)
            low = torch.where((value <= r) & (share == below), value, low)
            if k == rounds - 1:
                break
            is_finite = above.isfinite()
            # the square of the distance is nearly linear in the square of the share
            middle = below + (above - below) * (
                (r**2 - low.square()) / (high.square() - low.square()).clamp_min(1e-12)
            ).clamp(0.05, 0.95)
            if not self.ruler.is_random:
                middle = 0.5 * (below + above)  # a step function has no slope
            guess = share * meets(rest_level, value, r).clamp(0.5, 2.0)
            inside = (guess > below) & (guess < above)
            if self.ruler.is_random:
                middle = torch.where(inside, guess, middle)
            onward = torch.minimum(torch.maximum(share * 1.1, guess), greatest)
            middle = torch.where(is_finite, middle, onward.nan_to_num(1.0))
            share = torch.where(value.isnan(), share, middle)
        # the smallest share seen to fail, else where the last slope says that it would
        ahead = torch.minimum((share * meets(rest_level, value, r)).nan_to_num(math.inf), greatest)
        trail.failing = above.isfinite() | (ahead < greatest)
        near = torch.where((value - r).abs() < 0.1 * r, ahead, above)
        best = near if self.ruler.is_random else above
        trail.share = torch.where(best.isfinite(), best, torch.minimum(share, greatest))


def _twins(y: Tensor, rows: Tensor) -> Tensor | None:
    """Which points of the first half stand in the second too, (n / 2,); None where none can."""
    half = len(y) // 2
    if not half or len(y) % 2 or not torch.equal(rows[:half], rows[half:]):
        return None
    return (y[:half] == y[half:]).flatten(1).all(1)


def size_of(step: Tensor, norm: str) -> Tensor:
    """The size of each step, (n,): "l2", "linf", or "l1", the dual of "linf"."""
    order = {"l2": 2.0, "linf": math.inf, "l1": 1.0}[norm]
    return torch.linalg.vector_norm(step.flatten(1), ord=order, dim=1)
