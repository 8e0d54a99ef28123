"""The steps that a network is taken apart into, each with its forward and its backward pass."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from robustvae.certificates.propagation.numbers import ROUNDING, TINY, UP
from robustvae.certificates.propagation.rows import CurveLine, Line, NormalLine, Window, dense
from robustvae.norms import gamma

if TYPE_CHECKING:
    from robustvae.certificates.propagation.operator import Curve

Pulled = list[tuple[int, Window | Tensor]]
"""Rows by the node that they now stand at."""


@final
@dataclass(frozen=True)
class State:
    """One node over the balls, all (B, *shape).

    `low` and `high` bound how far it is from `value`; `size` bounds every sum of absolute values
    that led to it, so that gamma(`terms`) * `size` bounds what rounding did on the way.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    size: Tensor
    terms: int
    depth: int
    """0 for the ball itself, 1 after one affine step (its interval is the best), else more."""

    @property
    def slack(self) -> Tensor:
        """What rounding may have moved each value by."""
        return gamma(self.terms) * self.size + TINY

    def widened(self) -> State:
        """With the slack added to the ends, and 0, the center's own movement, between them."""
        low = (self.low - self.slack).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        high = (self.high + self.slack).nan_to_num(nan=torch.inf, posinf=torch.inf)
        return replace(self, low=low.clamp_max(0), high=high.clamp_min(0))


class Step(abc.ABC):
    """What one node makes of those before it."""

    parents: tuple[int, ...]

    @abc.abstractmethod
    def value(self, values: Sequence[Tensor]) -> Tensor:
        """The node's features from its parents', as the layer computes them, in float64."""

    @abc.abstractmethod
    def advance(self, before: Sequence[State], ball: Ball) -> State:
        """The node's interval from its parents'."""

    @abc.abstractmethod
    def pull(self, rows: Window | Tensor, owner: Tensor, line: Line | None) -> Pulled:
        """Backward rows taken to the parents; `line` is what the node's `lines` gave."""

    def lines(self, before: State) -> Line | None:
        """The lines of a nonlinear step over each ball; None for a linear one."""
        return None


@final
@dataclass(frozen=True)
class Ball:
    """What an affine step directly on the input makes use of."""

    radius: Tensor
    norm: str


@final
@dataclass(frozen=True)
class LinearStep(Step):
    """An affine step: `apply(x, way)`, without the bias, by W, its entries' sizes or squares.

    Attributes:
        parents: The node it reads.
        apply: As said; `way` is "plain", "sizes" or "squares".
        transpose: The adjoint.
        bias: Added, or None.
        terms: How many roundings lie on the way to one feature, forwards or backwards.
        moves: Whether it only rearranges features, or leaves some out.
        window: How it takes back rows that see a window: by what, the stride and the padding.
        pairs: Of a sort: the node it sorts, and where the larger and the smaller of each pair go.
        shape: Of the features that it reads.
    """

    parents: tuple[int, ...]
    apply: Callable[[Tensor, str], Tensor]
    transpose: Callable[[Tensor], Tensor]
    bias: Tensor | None
    terms: int
    shape: tuple[int, ...]
    moves: bool = False
    window: tuple[Callable[[Tensor], Tensor], tuple[int, ...], tuple[int, ...]] | None = None
    pairs: tuple[int, Tensor, Tensor] | None = None

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """W x + b."""
        image = self.apply(values[0], "plain")
        return image if self.bias is None else image + self.bias

    def advance(self, before: Sequence[State], ball: Ball) -> State:
        """By middle and half width; directly on an l2 ball by the rows' norms, which is exact."""
        (state,) = before
        bias = torch.zeros((), dtype=torch.float64) if self.bias is None else self.bias
        value = self.apply(state.value, "plain") + bias
        size = self.apply(state.size, "sizes") + bias.abs()
        middle = self.apply((state.low + state.high) / 2, "plain")
        half = self.apply((state.high - state.low) / 2, "sizes")
        low, high = middle - half, middle + half
        # Cauchy-Schwarz on the l2 ball itself is exact, and the box around it up to sqrt(D) wider
        if state.depth == 0 and ball.norm == "l2":
            rows = self.apply(torch.ones_like(state.value), "squares").sqrt()
            reach = rows * ball.radius.reshape(-1, *[1] * (rows.ndim - 1)) + TINY
            # squares vanish below 1e-160: there the rows' norms prove nothing
            reach = torch.where(rows > 1e-150, reach, torch.inf)
            low, high = torch.maximum(low, -reach), torch.minimum(high, reach)
        depth = 0 if self.moves and state.depth == 0 else state.depth + 1
        # 4 terms + 32: forwards and backwards, each rounded in products and sums
        terms = state.terms + 4 * self.terms + 32
        return State(value, low, high, size, terms, depth).widened()

    def pull(self, rows: Window | Tensor, owner: Tensor, line: Line | None) -> Pulled:
        """By the adjoint."""
        if isinstance(rows, Window) and self.window is not None:
            return [(self.parents[0], rows.through(*self.window, self.shape))]
        return [(self.parents[0], self.transpose(dense(rows)))]


@final
@dataclass(frozen=True)
class SumStep(Step):
    """The sum of nodes of one shape."""

    parents: tuple[int, ...]

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """The sum."""
        first, *others = values
        return sum(others, first)

    def advance(self, before: Sequence[State], ball: Ball) -> State:
        """Ends add up."""
        state, *others = before
        for other in others:
            state = State(
                state.value + other.value,
                state.low + other.low,
                state.high + other.high,
                state.size + other.size,
                max(state.terms, other.terms) + 16,
                2,
            )
        return state.widened()

    def pull(self, rows: Window | Tensor, owner: Tensor, line: Line | None) -> Pulled:
        """The same rows for each."""
        return [(parent, rows) for parent in self.parents]


@final
@dataclass(frozen=True)
class JoinStep(Step):
    """Nodes one after the other along the first axis (features, or channels)."""

    parents: tuple[int, ...]
    widths: tuple[int, ...]

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """Side by side."""
        return torch.cat(list(values), 1)

    def advance(self, before: Sequence[State], ball: Ball) -> State:
        """Side by side."""
        value, low, high, size = (
            torch.cat([getattr(state, name) for state in before], 1)
            for name in ("value", "low", "high", "size")
        )
        terms = max(state.terms for state in before)
        # of several nodes the ball itself may be one: its interval is then not the best
        depth = max(2, *(state.depth for state in before))
        return State(value, low, high, size, terms, depth)

    def pull(self, rows: Window | Tensor, owner: Tensor, line: Line | None) -> Pulled:
        """Each its part."""
        return list(zip(self.parents, dense(rows).split(self.widths, 1), strict=True))


@final
@dataclass(frozen=True)
class CurveStep(Step):
    """An elementwise step on the last axis from `after` on; what is before it passes."""

    parents: tuple[int, ...]
    curve: Curve
    after: int = 0

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """phi of what is not passed."""
        (x,) = values
        return self._whole(x, self.curve.value(x[..., self.after :]))

    def _whole(self, passed: Tensor, part: Tensor) -> Tensor:
        return torch.cat([passed[..., : self.after], part], -1) if self.after else part

    def interval(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Value, least and largest input of the curve, rounded outwards."""
        value, low, high = (p[..., self.after :] for p in (state.value, state.low, state.high))
        off = ROUNDING * (value.abs() + high - low) + TINY
        return value, value + low - off, value + high + off

    def lines(self, before: State) -> CurveLine:
        """Chords, and what they leave out; `total` is to be found by rows."""
        value, low, high = self.interval(before)
        finite = low.isfinite() & high.isfinite()
        low, high = torch.where(finite, low, value), torch.where(finite, high, value)
        slope = self.curve.chord(value, low, high)
        slope = torch.where(finite & slope.isfinite(), slope, 0.0)
        least, greatest = self.curve.remainder(slope, value, low, high)
        ratio, doubt = self.curve.ratio(slope, value, low, high)
        # where the interval is not bounded nothing is: an infinite remainder says so
        wide = ~(finite & least.isfinite() & greatest.isfinite() & ratio.isfinite())
        middle = torch.where(wide, 0.0, (least + greatest) / 2)
        half = torch.where(wide, torch.inf, (greatest - least) / 2 * UP)
        ratio = torch.where(wide, torch.inf, ratio)
        zeros = torch.zeros_like(before.value)
        flat = [self._whole(zeros, part).flatten(1) for part in (middle, half, ratio, doubt)]
        middle, half, ratio, doubt = flat
        total = ((middle.abs() + half).norm(dim=1)) * UP
        return CurveLine(middle, half, total, self._whole(zeros + 1, slope), ratio, doubt)

    def advance(self, before: Sequence[State], ball: Ball) -> State:
        """The images of the interval; what rounding did before grows by the slopes there."""
        (state,) = before
        value, low, high = self.interval(state)
        finite = low.isfinite() & high.isfinite()
        ends = torch.where(finite, low, value), torch.where(finite, high, value)
        least, greatest = self.curve.remainder(torch.zeros_like(value), value, *ends)
        least, greatest = (
            torch.where(finite, least, -torch.inf),
            torch.where(finite, greatest, torch.inf),
        )
        image = self.curve.value(value)
        # the slopes near the interval, not the steepest of all: where a curve saturates, rounding
        # before it is lost, and what follows may bring it back to size
        slack = state.slack[..., self.after :]
        slope = torch.maximum(
            *(end.abs() for end in self.curve.slopes(ends[0] - slack, ends[1] + slack))
        )
        size = slope * state.size[..., self.after :] + 2 * image.abs() + TINY
        width = torch.where(finite, ends[1] - ends[0], 0.0)
        size = size + slope * width
        # a curve's own rounding is in `remainder`; as many terms as features is far above a few
        return State(
            self._whole(state.value, image),
            self._whole(state.low, least),
            self._whole(state.high, greatest),
            self._whole(state.size, size),
            state.terms + 4 * image[0].numel() + 32,
            state.depth + 1,
        ).widened()

    def pull(self, rows: Window | Tensor, owner: Tensor, line: Line | None) -> Pulled:
        """Times the slopes."""
        assert line is not None
        return [(self.parents[0], line.pull(rows, owner))]


@final
@dataclass(frozen=True)
class NormalStep(Step):
    """u / sqrt(|u|^2 / n + eps) in groups of n: what normalizations do to centered features.

    Its tangent is followed; what that leaves out is bounded by the second derivative,

        |D^2 y_i [d, d]| <= 2 |d_i| s^2 |d| / sqrt(n) + 2 |u_i| s^3 |d|^2 / n,

    with s = (|u|^2 / n + eps)^(-1/2) at its largest over the ball: |u' d| <= |u| |d| and
    s |u| <= sqrt(n), and | -1 + 3 s^2 (u' d)^2 / (n |d|^2) | <= 2.
    """

    parents: tuple[int, ...]
    groups: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    eps: float

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """Normalized."""
        u = self.groups(values[0])
        return self.back(u * (u.square().mean(2, keepdim=True) + self.eps).rsqrt())

    def _bounds(self, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        u, low, high = (self.groups(p) for p in (state.value, state.low, state.high))
        n = u.shape[2]
        d = torch.maximum(high, -low) * UP
        reach = d.norm(dim=2, keepdim=True) * UP
        scale = (u.square().mean(2, keepdim=True) + self.eps).rsqrt()
        nearest = (u.norm(dim=2, keepdim=True) * (1 - ROUNDING * n) - reach).clamp_min(0)
        largest = (nearest.square() / n + self.eps).rsqrt() * UP
        y = u * scale
        farthest = torch.maximum((u + low).abs(), (u + high).abs()) * UP
        second = 2 * d * largest**2 * reach / n**0.5 + 2 * farthest * largest**3 * reach**2 / n
        # far out the output itself, at most sqrt(n), says more than its second derivative
        tangent = scale * (d + y.abs() * reach / n**0.5)
        left_out = torch.minimum(second / 2, 2 * n**0.5 + tangent) * UP + TINY
        return y, scale, left_out, largest, tangent

    def lines(self, before: State) -> NormalLine:
        """The tangent."""
        y, scale, left_out, _, _ = self._bounds(before)
        half = self.back(left_out).flatten(1)
        half = half.nan_to_num(nan=torch.inf, posinf=torch.inf)
        total = half.norm(dim=1) * UP
        return NormalLine(torch.zeros_like(half), half, total, scale, y, self.groups, self.back)

    def advance(self, before: Sequence[State], ball: Ball) -> State:
        """By the tangent and what it leaves out, within sqrt(n) of 0."""
        (state,) = before
        y, _, left_out, largest, tangent = self._bounds(state)
        n = y.shape[2]
        half = (tangent + left_out) * UP
        low = torch.maximum(-half, -(n**0.5) * UP - y)
        high = torch.minimum(half, n**0.5 * UP - y)
        group_norm = self.groups(state.size).norm(dim=2, keepdim=True)
        size = largest * group_norm + 2 * n**0.5
        return State(
            self.back(y),
            self.back(low),
            self.back(high),
            self.back(size.expand_as(y)),
            state.terms + 8 * n + 32,
            state.depth + 1,
        ).widened()

    def pull(self, rows: Window | Tensor, owner: Tensor, line: Line | None) -> Pulled:
        """By the Jacobian at the center."""
        assert line is not None
        return [(self.parents[0], line.pull(rows, owner))]
