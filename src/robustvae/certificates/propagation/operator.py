"""What bounds ask of an operator, and the table that finds the operator of a layer."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from robustvae import gate, registry
from robustvae.arguments import checked
from robustvae.certificates.propagation.numbers import NEAR, ROUNDING, TINY, UP
from robustvae.certificates.propagation.steps import CurveStep, Step
from robustvae.errors import ConfigError, UnsupportedError

Shape = tuple[int, ...]
Calls = dict[Any, Callable[..., nn.Module]]

PIECES = 16
"""Into how many an interval is cut to bound a smooth remainder: the error is 1 / 16^2 of it."""


class Builder(Protocol):
    """Takes the steps of a network."""

    def shape(self, node: int) -> Shape:
        """Of a node's features, without the batch."""

    def append(self, step: Step, shape: Shape) -> int:
        """Append a step with features of that shape; returns its node."""


class Operator(abc.ABC):
    """How bounds pass one kind of layer; made for one layer that the gate has admitted.

    Attributes:
        kinds: Classes of layers that it is for, exactly.
        calls: Functions, and names of tensor methods, that do the same, each with what makes a
            layer of the call's other arguments.
    """

    kinds: ClassVar[tuple[type[nn.Module], ...]] = ()
    calls: ClassVar[Calls] = {}

    def __init__(self, layer: nn.Module) -> None:
        """Read the layer's weights and options.

        Raises:
            UnsupportedError: An option that is not covered, by name.
        """
        self.layer: Any = layer

    @abc.abstractmethod
    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """Append the steps that do what the layer does to the nodes it reads; returns the node."""

    @abc.abstractmethod
    def lipschitz(self, shape: Shape) -> float:
        """An upper bound on the Lipschitz constant, l2 to l2, on features of `shape`."""

    def roundings(self, shape: Shape) -> int:
        """How many rounded operations lead to one feature; of a curve its units in the last place.

        0 where the layer only moves, chooses or drops features.

        Raises:
            UnsupportedError: It is not known.
        """
        return 0

    def grow(self, bounds: tuple[float, ...], shape: Shape) -> float:
        """The constant after the layer, of the constants of what it reads."""
        (before,) = bounds
        return before * self.lipschitz(shape)


class Curve(Operator):
    """An elementwise activation phi.

    Its lines: phi(h) - phi(v) = slope (h - v) + remainder, for h in [low, high] around v.
    """

    steepest: float = 1.0
    """Largest |phi'|."""

    precision: float = ROUNDING
    """Relative error of `value`."""

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One step."""
        (node,) = reads
        return network.append(CurveStep((node,), self), network.shape(node))

    def lipschitz(self, shape: Shape) -> float:
        """The largest slope."""
        return self.steepest

    @abc.abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """phi(x), relatively exact to `precision`, and absolutely to `doubt` beyond that."""

    @abc.abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """phi'(x); one of the two at a kink."""

    @abc.abstractmethod
    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on phi' over [low, high]."""

    def doubt(self) -> float:
        """Absolute error of `value` beyond rounding."""
        return 0.0

    def is_exact(self, low: Tensor, high: Tensor) -> Tensor:
        """Where phi is one line over [low, high]."""
        return torch.zeros_like(low, dtype=torch.bool)

    @abc.abstractmethod
    def chord(self, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The slope of the line from end to end; any other would be sound as well."""

    @abc.abstractmethod
    def remainder(
        self, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Bounds on phi(h) - phi(v) - slope (h - v) for h in [low, high]; 0 is between them."""

    @abc.abstractmethod
    def ratio(
        self, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """c and doubt: |phi(h) - phi(v) - slope (h - v)| <= c |h - v| + doubt on [low, high]."""

    def _gap(self, point: Tensor, slope: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """phi(p) - phi(v) - slope (p - v), and a bound on what its rounding did."""
        image, start, line = self.value(point), self.value(value), slope * (point - value)
        rounding = (
            self.precision * (image.abs() + start.abs() + line.abs()) + 2 * self.doubt() + TINY
        )
        return image - start - line, rounding


class Smooth(Curve):
    """A curve with a bounded second derivative between its kinks, which are few."""

    units: int = 8
    """Error of torch's own evaluation, in units in the last place; the tests see at most 4."""

    def roundings(self, shape: Shape) -> int:
        """As stated."""
        return self.units

    tail: float = 8.0
    """Beyond it the curve is nearly a line: pieces are not wasted there."""

    kinks: tuple[float, ...] = ()
    """Where the second derivative is not bounded: pieces end there."""

    @abc.abstractmethod
    def curvature(self, low: Tensor, high: Tensor) -> Tensor:
        """Upper bounds on |phi''| over pieces [low, high] without a kink inside."""

    def chord(self, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """From end to end; the tangent where the interval is too short to divide by."""
        wide = high - low
        line = (self.value(high) - self.value(low)) / wide.clamp_min(TINY)
        # below 1e-7 the chord's rounding, 1e-16 / 1e-7, would exceed what it gains on the tangent
        return torch.where(wide > 1e-7 * (1 + value.abs()), line, self.derivative(value))

    def remainder(
        self, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By pieces: monotone ones have their extremes at their ends.

        In a piece of width w that may hold an extreme, the remainder exceeds the larger of its end
        values by at most max |phi''| w^2 / 8, and by at most w B |A| / (B + |A|) where its slope
        lies in [A, B]. Nothing is inverted, so nothing cancels where the curve saturates.
        """
        knots = [low, high]
        # an interval within a tail is cut as it is: there, too, a curve may matter
        beyond = (high < -self.tail) | (low > self.tail)
        inner = torch.where(beyond, low, low.clamp(-self.tail, self.tail))
        outer = torch.where(beyond, high, high.clamp(-self.tail, self.tail))
        # even steps of asinh: denser about 0, where the curve bends most
        unit = 8 / self.tail
        inner, outer = torch.asinh(unit * inner), torch.asinh(unit * outer)
        for k in range(PIECES + 1):
            knots.append(torch.lerp(inner, outer, k / PIECES).sinh() / unit)
        for kink in self.kinks:
            knots.append(torch.full_like(low, kink))
        points = torch.stack(knots).clamp(low, high).sort(0).values
        gaps, rounding = self._gap(points, slope, value)
        greatest, least = (gaps + rounding).amax(0), (gaps - rounding).amin(0)
        start, end = points[:-1], points[1:]
        width = (end - start) * UP
        bottom, top = self.slopes(start, end)
        # slopes relative to the line's, rounded outwards
        top = (top - slope) + ROUNDING * (top.abs() + slope.abs())
        bottom = (slope - bottom) + ROUNDING * (bottom.abs() + slope.abs())
        # an extreme lies inside a piece only where the curve's slope may pass the line's
        turns = (top > 0) & (bottom > 0)
        by_slope = width * top * (bottom / (top + bottom).clamp_min(TINY))
        by_curve = self.curvature(start, end) * width.square() / 8
        excess = torch.where(turns, torch.minimum(by_slope, by_curve), 0.0) * UP
        upper = (
            torch.maximum(gaps[:-1], gaps[1:]) + torch.maximum(rounding[:-1], rounding[1:]) + excess
        )
        lower = (
            torch.minimum(gaps[:-1], gaps[1:]) - torch.maximum(rounding[:-1], rounding[1:]) - excess
        )
        greatest, least = (
            torch.maximum(greatest, upper.amax(0)),
            torch.minimum(least, lower.amin(0)),
        )
        # v itself is in the interval, where the remainder is 0
        return least.clamp_max(0), greatest.clamp_min(0)

    def ratio(
        self, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By the mean value theorem."""
        least, greatest = self.slopes(low, high)
        doubt = ROUNDING * (self.value(value).abs() + value.abs() + high - low)
        doubt = 4 * doubt + 2 * self.doubt() + TINY
        return torch.maximum(greatest - slope, slope - least).clamp_min(0) + ROUNDING, doubt


class Kinked(Curve):
    """A curve of lines that meet at `kinks`: its remainders are exact."""

    kinks: tuple[float, ...] = (0.0,)
    lines: tuple[float | Tensor, ...]
    """Slopes of the lines from the left, one more than kinks; numbers, or one a channel."""

    def is_exact(self, low: Tensor, high: Tensor) -> Tensor:
        """No kink strictly within."""
        inside = [(low < kink) & (high > kink) for kink in self.kinks]
        return ~torch.stack(inside).any(0)

    def derivative(self, x: Tensor) -> Tensor:
        """The slope of the line that x is on; at a kink, of the one to its left."""
        first, *others = self.lines
        slope = torch.zeros_like(x) + first
        for kink, line in zip(self.kinks, others, strict=True):
            slope = torch.where(x > kink, line, slope)
        return slope

    def slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Of the lines that the interval touches."""
        ends = (-math.inf, *self.kinks, math.inf)
        least, greatest = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
        for line, start, end in zip(self.lines, ends, ends[1:], strict=False):
            is_reached = (low <= end) & (high >= start)
            least = torch.where(is_reached, least.clamp_max(line), least)
            greatest = torch.where(is_reached, greatest.clamp_min(line), greatest)
        return least, greatest

    def chord(self, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """From end to end; the line itself where there is but one."""
        line = (self.value(high) - self.value(low)) / (high - low).clamp_min(TINY)
        return torch.where(self.is_exact(low, high), self.derivative((low + high) / 2), line)

    def remainder(
        self, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """At the ends and the kinks, where alone it can be extreme."""
        points = [low, high, *(torch.full_like(low, k).clamp(low, high) for k in self.kinks)]
        gaps, rounding = self._gap(torch.stack(points), slope, value)
        least, greatest = (
            (gaps - rounding).amin(0).clamp_max(0),
            (gaps + rounding).amax(0).clamp_min(0),
        )
        exact = self.is_exact(low, high) & (slope == self.derivative((low + high) / 2))
        return torch.where(exact, 0.0, least), torch.where(exact, 0.0, greatest)

    def ratio(
        self, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By the secants from v: on each line they are monotone, so ends and kinks suffice."""
        points = [low, high, *(torch.full_like(low, k).clamp(low, high) for k in self.kinks)]
        near = NEAR * (1 + value.abs())
        around = self.slopes(value - near, value + near)
        # the lines at v itself, and what their rounding may hide
        ratio = torch.maximum((around[0] - slope).abs(), (around[1] - slope).abs())
        for point in points:
            gap = point - value
            far = gap.abs() > near
            secant = (self.value(point) - self.value(value)) / torch.where(far, gap, 1.0)
            ratio = torch.where(far, torch.maximum(ratio, (secant - slope).abs()), ratio)
        has_kink = ~(self.is_exact(low, high) & (slope == self.derivative((low + high) / 2)))
        doubt = 4 * ROUNDING * (self.value(value).abs() + value.abs() + high - low) + TINY
        doubt = doubt + 2 * self.steepest * near
        return ratio * UP * has_kink, doubt * has_kink


OPERATORS: dict[type[nn.Module], type[Operator]] = {}
"""The operator of each class of layers, as far as `load` has read the registry."""

CALLS: Calls = {}
"""What makes a layer of a call of a function, or of a tensor's method by name."""

_loaded: set[str] = set()


def load() -> None:
    """Enter every registered operator in the tables, and its layers at the gate.

    Raises:
        ConfigError: Two operators for one class of layers.
    """
    for name in registry.names("operator"):
        if name in _loaded:
            continue
        operator: type[Operator] = registry.lookup("operator", name)
        for kind in operator.kinds:
            holder = OPERATORS.setdefault(kind, operator)
            if holder is not operator:
                raise ConfigError(
                    f"{kind.__name__} has the operator {holder.__name__} already, got "
                    f"{operator.__name__}: leave it out of the latter's kinds"
                )
        gate.know(*operator.kinds)
        CALLS.update(operator.calls)
        _loaded.add(name)


@checked()
def operator_of(layer: nn.Module) -> Operator:
    """The operator of a layer that the gate admits.

    Raises:
        UnsupportedError: A layer that is not admitted, or an option that is not covered, by name.

    Examples:
        >>> from torch import nn
        >>> from robustvae.certificates.propagation import operator_of
        >>> operator_of(nn.Sigmoid()).lipschitz((3,))
        0.25
    """
    if type(layer) not in OPERATORS:
        load()  # perhaps a plug-in's, registered since
    gate.admit(layer)
    operator = OPERATORS.get(type(layer))
    if operator is None:
        raise UnsupportedError(f"no bounds are known for {type(layer).__name__}")
    return operator(layer)
