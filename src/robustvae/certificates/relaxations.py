"""Linear bound propagation: a network over a ball as a linear map plus a bounded rest.

IBP, CROWN-IBP and backward CROWN for l2 and linf balls. Every activation is enclosed between two
parallel lines over the interval that its input can reach, so that one matrix serves both sides:

    f(p) - f(x) = slope (p - x) + rest,    low <= rest <= high,    for every p in the ball.

Parallel lines are what lets the length of a whole vector be bounded by a spectral norm, where lines
of different slopes bound it coordinate by coordinate. All in float64; what rounding can do is
bounded by one pass of absolute values, and added to the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.displacement import ROUNDING, batch_norm_factor
from robustvae.errors import ShapeError, UnsupportedError, check_choice, check_count
from robustvae.models.lipschitz import GroupSort, MaxMin, Scale
from robustvae.norms import gamma, spectral_norm_bounds

Method = Literal["ibp", "crown-ibp", "crown"]
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")
"""From the cheapest to the tightest."""

MEMORY = 2**27
WORK = 2**36
_UP = 1 + 1e-11  # over the rounding of a few operations and of sums of up to 40,000 positive terms


@final
@dataclass(frozen=True, eq=False)
class LinearBounds:
    """f(p) - f(x) = slope (p - x) + rest for every p in the ball around x, with `rest` bounded.

    Attributes:
        value: f(x) as computed, (B, k).
        slope: (B, k, D); None for "ibp".
        low: Lower bounds on the rest, (B, k).
        high: Upper bounds on the rest, (B, k).
        lower: Lower bounds on f(p) - f(x) and on f(p) - `value`, (B, k).
        upper: Upper bounds on the same, (B, k).
        radius: Of each ball, (B,).
        norm: "l2" or "linf".
        method: The one that was used, "crown-ibp" where "crown" fell back.
    """

    value: Tensor
    slope: Tensor | None
    low: Tensor
    high: Tensor
    lower: Tensor
    upper: Tensor
    radius: Tensor
    norm: str
    method: Method

    def length(self, scale: Tensor) -> Tensor:
        """An upper bound on the l2 norm of scale * (f(p) - f(x)) over the ball, (B,).

        Args:
            scale: Positive weights of the coordinates, (B, k).
        """
        box = (torch.maximum(self.upper, -self.lower) * scale).norm(dim=1) * _UP
        if self.slope is None:
            return box
        rest = (torch.maximum(self.high, -self.low) * scale).norm(dim=1) * _UP
        scaled = self.slope * scale[:, :, None]
        across = spectral_norm_bounds(scaled) * _UP
        if self.norm == "linf":
            # |A s|^2 = sum_ij (A'A)_ij s_i s_j for |s_i| <= 1
            rows = scaled.abs().sum(2).square().sum(1)
            gram = (scaled.mT @ scaled).abs().sum((1, 2)) + gamma(scaled.shape[1] + 8) * rows
            across = torch.minimum(across * scaled.shape[2] ** 0.5, gram.sqrt()) * _UP
        return torch.minimum(box, (across * self.radius + rest) * _UP)


@final
class Add(nn.Module):
    """The sum of what its branches make of the same features; `Add(nn.Identity(), f)` is x + f(x).

    Args:
        branches: Networks with outputs of one shape.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.relaxations import Add
        >>> Add(torch.nn.Identity(), torch.nn.ReLU())(torch.tensor([-1.0, 2.0]))
        tensor([-1.,  4.])
    """

    def __init__(self, *branches: nn.Module) -> None:
        """Keep the branches."""
        super().__init__()
        check_count(len(branches), "the number of branches")
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Features, of any shape that the branches read."""
        first, *others = (branch(x) for branch in self.branches)
        return sum(others, first)


@final
class Relaxation:
    """A feed-forward network, or several heads on one trunk, made ready for bounds over balls.

    Covered: `Linear`, `Conv2d`, `ConvTranspose2d`, `Flatten`, `Unflatten`, `ReLU`, `LeakyReLU`,
    `Tanh`, `Sigmoid`, `Softplus`, `GroupSort(2)`, `MaxMin`, batch norm in evaluation mode, `Scale`,
    `Identity`, `Dropout`, `Add`, and `Sequential` of them.

    Args:
        trunk: What all heads read.
        heads: Networks on the trunk's output; without any the trunk's output is bounded.
        shape: Of one input, without the batch.

    Raises:
        UnsupportedError: A layer that is not covered, by name.

    References:
        Zhang et al., 2018 (CROWN); Zhang et al., 2020 (CROWN-IBP); Weng et al., 2018, for the
        parallel lines of a ReLU.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from robustvae.certificates.relaxations import Relaxation
        >>> net = Relaxation(nn.ReLU(), shape=(2,))
        >>> found, = net.over(torch.tensor([[3.0, -3.0]]), torch.tensor([1.0]))
        >>> found.slope[0]
        tensor([[1., 0.],
                [0., 0.]], dtype=torch.float64)
    """

    def __init__(self, trunk: nn.Module, *heads: nn.Module, shape: Sequence[int]) -> None:
        """Take the networks apart."""
        self.shape = tuple(shape)
        self._steps: list[_Step] = []
        self._shapes: list[tuple[int, ...]] = [self.shape]
        end = self._take(trunk, 0)
        self._outputs = [self._take(head, end) for head in heads] or [end]

    def over(
        self,
        x: Tensor,
        radius: Tensor,
        *,
        norm: str = "l2",
        method: Method = "crown",
        memory: int = MEMORY,
        work: int = WORK,
    ) -> tuple[LinearBounds, ...]:
        """Bounds of each head over the ball around each input.

        "ibp" carries intervals from layer to layer; "crown-ibp" takes its lines from those
        intervals and substitutes them backwards from the outputs; "crown" tightens the interval
        before each activation in the same way first, where it matters. Whatever the method, an
        interval is never wider than that of "ibp".

        Args:
            x: Centres, (B, *shape).
            radius: Of each ball, (B,).
            norm: "l2" or "linf".
            method: The tightest to use; a cheaper one is taken where this one is too dear.
            memory: Bytes that one chunk of backward rows may take.
            work: Bytes that all backward rows to one layer may take together: beyond it that
                layer's interval stays as it is, and the result's `method` says so.

        Raises:
            ShapeError: `x` is not (B, *shape).
        """
        check_choice("norm", norm, ("l2", "linf"))
        check_choice("method", method, METHODS)
        if tuple(x.shape[1:]) != self.shape:
            raise ShapeError(f"x must be (B, {self.shape}), got {tuple(x.shape)}")
        sweep = _Sweep(self._steps, x.double(), radius.double(), norm, memory, work)
        used: Method = method
        for node, step in enumerate(self._steps, start=1):
            if isinstance(step, _Activation) and method == "crown":
                used = used if sweep.tighten(step) else "crown-ibp"
            sweep.advance(node, step)
        return tuple(sweep.bounds(output, used) for output in self._outputs)

    def _take(self, network: nn.Module, node: int) -> int:
        """Append the steps of a network that reads `node`; returns the node of its output."""
        if network._forward_hooks or network._forward_pre_hooks:
            raise UnsupportedError(f"a {type(network).__name__} with a forward hook is not covered")
        if type(network) is nn.Sequential:
            for layer in network:
                node = self._take(layer, node)
            return node
        if type(network) in (nn.Identity, nn.Dropout):
            return node
        if type(network) is Add:
            ends = tuple(self._take(branch, node) for branch in network.branches)
            return self._append(_Sum(ends), self._shapes[ends[0]])
        if type(network) in (GroupSort, MaxMin):
            return self._take_sort(network, node)
        if type(network) in _CURVES:
            return self._append(_Activation(node, network), self._shapes[node])
        linear = _linear(network, node, self._shapes[node])
        zero = torch.zeros(1, *self._shapes[node], dtype=torch.float64)
        return self._append(linear, tuple(linear.apply(zero, "plain").shape[1:]))

    def _take_sort(self, layer: nn.Module, node: int) -> int:
        """max(a, b) = a + relu(b - a) and min(a, b) = b - relu(b - a)."""
        (size,) = self._shapes[node][-1:]
        if len(self._shapes[node]) != 1 or (isinstance(layer, GroupSort) and layer.group != 2):
            raise UnsupportedError(f"{type(layer).__name__} of more than pairs of flat features")
        index, half = torch.arange(size), size // 2
        first, second = index.chunk(2) if isinstance(layer, MaxMin) else (index[0::2], index[1::2])
        most, least = (first, second) if isinstance(layer, MaxMin) else (second, first)
        eye, bend = torch.eye(size, dtype=torch.float64), size + torch.arange(half)
        apart = torch.cat([eye, eye[second] - eye[first]])
        join = torch.zeros(size, size + half, dtype=torch.float64)
        join[most, first] = join[least, second] = join[most, bend] = 1
        join[least, bend] = -1
        wide = self._append(_dense(apart, None, node), (size + half,))
        bent = self._append(_Activation(wide, nn.ReLU(), after=size), (size + half,))
        sorted_ = _dense(join, None, bent)
        return self._append(replace(sorted_, pairs=(node, most, least)), (size,))

    def _append(self, step: _Step, shape: tuple[int, ...]) -> int:
        self._steps.append(step)
        self._shapes.append(shape)
        return len(self._steps)


@dataclass(frozen=True)
class _Linear:
    """An affine step: `apply(x, way)`, without the bias, by W, its entries' sizes or squares."""

    parent: int
    apply: Callable[[Tensor, str], Tensor]
    transpose: Callable[[Tensor], Tensor]
    bias: Tensor | None
    terms: int
    moves: bool = False
    """Whether it only rearranges features."""
    pairs: tuple[int, Tensor, Tensor] | None = None
    """Of a sort: the node it sorts, and where the larger and the smaller of each pair go."""


@dataclass(frozen=True)
class _Activation:
    """An elementwise step on the features from `after` on; those before it pass."""

    parent: int
    layer: nn.Module
    after: int = 0


@dataclass(frozen=True)
class _Sum:
    parents: tuple[int, ...]


_Step = _Linear | _Activation | _Sum


@dataclass(frozen=True)
class _State:
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
        return gamma(self.terms) * self.size


class _Sweep:
    """One pass over the network, with what backward rows need of the activations passed."""

    def __init__(
        self, steps: list[_Step], x: Tensor, radius: Tensor, norm: str, memory: int, work: int
    ) -> None:
        self.steps, self.radius, self.norm = steps, radius, norm
        self.memory, self.work = memory, work
        ball = _like(radius, x).expand_as(x)
        self.states = [_State(x, -ball, ball, x.abs() + ball, 4, 0)]
        self.lines: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def advance(self, node: int, step: _Step) -> None:
        """The next node's intervals from those before it, and an activation's lines."""
        if isinstance(step, _Linear):
            state = self._affine(step)
        elif isinstance(step, _Activation):
            state = self._bent(node, step)
        else:
            first, *others = (self.states[parent] for parent in step.parents)
            state = first
            for other in others:
                state = _State(
                    state.value + other.value,
                    state.low + other.low,
                    state.high + other.high,
                    state.size + other.size,
                    max(state.terms, other.terms) + 16,
                    2,
                )
            state = replace(state, low=state.low - state.slack, high=state.high + state.slack)
        self.states.append(state)

    def _affine(self, step: _Linear) -> _State:
        before = self.states[step.parent]
        bias = torch.zeros((), dtype=torch.float64) if step.bias is None else step.bias
        value = step.apply(before.value, "plain") + bias
        size = step.apply(before.size, "sizes") + bias.abs()
        middle = step.apply((before.low + before.high) / 2, "plain")
        half = step.apply((before.high - before.low) / 2, "sizes")
        if before.depth == 0 and self.norm == "l2":
            rows = step.apply(torch.ones_like(before.value), "squares").sqrt()
            half = torch.minimum(half, rows * _like(self.radius, rows))
        low, high = middle - half, middle + half
        if step.pairs is not None:
            origin, most, least = step.pairs
            pair = self.states[origin]
            for end, moved in ((pair.value + pair.low, low), (pair.value + pair.high, high)):
                one, two = end[:, most], end[:, least]
                moved[:, most] = torch.maximum(one, two) - value[:, most]
                moved[:, least] = torch.minimum(one, two) - value[:, least]
        depth = 0 if step.moves and before.depth == 0 else before.depth + 1
        state = _State(value, low, high, size, before.terms + 4 * step.terms + 32, depth)
        return replace(state, low=low - state.slack, high=high + state.slack)

    def _bent(self, node: int, step: _Activation) -> _State:
        before = self.states[step.parent]
        layer, after = step.layer, step.after
        parts = [part[:, after:] for part in (before.value, before.low, before.high)]
        value, low, high = parts
        off = ROUNDING * (value.abs() + high - low)
        low, high = value + low - off, value + high + off
        slope = _chord(layer, value, low, high)
        rest = _rest(layer, slope, value, low, high)
        moved = _rest(layer, torch.zeros_like(slope), value, low, high)
        middle, half = (rest[0] + rest[1]) / 2, (rest[1] - rest[0]) / 2 * _UP
        bent = layer(value)

        def whole(passed: Tensor, part: Tensor) -> Tensor:
            return torch.cat([passed[:, :after], part], 1) if after else part

        self.lines[node] = (
            whole(torch.ones_like(before.value), slope),
            whole(torch.zeros_like(before.value), middle),
            whole(torch.zeros_like(before.value), half),
        )
        size = slope.abs() * before.size[:, after:] + bent.abs() + middle.abs() + half
        return _State(
            whole(before.value, bent),
            whole(before.low, moved[0]),
            whole(before.high, moved[1]),
            whole(before.size, size),
            before.terms + 4 * bent[0].numel() + 32,
            before.depth + 1,
        )

    def tighten(self, step: _Activation) -> bool:
        """Narrow the interval before an activation by backward rows; False if that is too dear."""
        before = self.states[step.parent]
        if before.depth <= 1:
            return True
        needed = before.high > before.low
        if isinstance(step.layer, nn.ReLU | nn.LeakyReLU):
            needed = (before.value + before.low < 0) & (before.value + before.high > 0)
        needed[:, : step.after] &= step.after == 0
        rows = needed.flatten(1).nonzero()
        if self._bytes(len(rows), step.parent) > self.work:
            return False
        low, high = before.low.flatten(1).clone(), before.high.flatten(1).clone()
        for part, slope, rest_low, rest_high in self._backward(step.parent, rows):
            across = self._across(slope, part[:, 0])
            index = part[:, 0], part[:, 1]
            slack = before.slack.flatten(1)[index]
            low[index] = torch.maximum(low[index], rest_low - across - slack)
            high[index] = torch.minimum(high[index], rest_high + across + slack)
        shape = before.value.shape
        self.states[step.parent] = replace(before, low=low.view(shape), high=high.view(shape))
        return True

    def bounds(self, node: int, method: Method) -> LinearBounds:
        """Bounds of an output."""
        state = self.states[node]
        batch, width = state.value.shape[0], state.value[0].numel()
        slack = 2 * state.slack.flatten(1)  # of f(p) and of f(x)
        lower, upper = state.low.flatten(1) - slack, state.high.flatten(1) + slack
        low, high, slope = lower, upper, None
        rows = torch.ones(batch, width).nonzero()
        if method != "ibp" and self._bytes(len(rows), node) <= self.work:
            found = [found for _, *found in self._backward(node, rows)]
            flat, low, high = (torch.cat(parts) for parts in zip(*found, strict=True))
            across = self._across(flat, rows[:, 0]).view(batch, width)
            slope = flat.view(batch, width, -1)
            low, high = low.view(batch, width) - slack, high.view(batch, width) + slack
            lower = torch.maximum(lower, low - across)
            upper = torch.minimum(upper, high + across)
        return LinearBounds(
            value=state.value.flatten(1),
            slope=slope,
            low=low,
            high=high,
            lower=lower,
            upper=upper,
            radius=self.radius,
            norm=self.norm,
            method="ibp" if slope is None else method,
        )

    def _bytes(self, rows: int, node: int) -> int:
        return 8 * rows * sum(state.value[0].numel() for state in self.states[: node + 1])

    def _across(self, slope: Tensor, batch: Tensor) -> Tensor:
        """The most that slope (p - x) can be, for each row."""
        size = slope.norm(dim=1) if self.norm == "l2" else slope.abs().sum(1)
        return size * self.radius[batch] * _UP

    def _backward(self, node: int, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For the rows (input, feature), in chunks: these; their slopes (R, D); their rests."""
        widest = max(state.value[0].numel() for state in self.states[: node + 1])
        for part in rows.split(max(1, self.memory // (8 * 4 * widest))):
            batch = part[:, 0]
            start = torch.zeros(len(part), self.states[node].value[0].numel(), dtype=torch.float64)
            start[torch.arange(len(part)), part[:, 1]] = 1
            pending = {node: start.view(-1, *self.states[node].value.shape[1:])}
            middle, half = start.new_zeros(len(part)), start.new_zeros(len(part))
            for n in range(node, 0, -1):
                if n not in pending:
                    continue
                row, step = pending.pop(n), self.steps[n - 1]
                if isinstance(step, _Activation):
                    slope, mid, wide = (line[batch] for line in self.lines[n])
                    middle += (row * mid).flatten(1).sum(1)
                    half += (row.abs() * wide).flatten(1).sum(1)
                    row = row * slope
                elif isinstance(step, _Linear):
                    row = step.transpose(row)
                for parent in step.parents if isinstance(step, _Sum) else (step.parent,):
                    pending[parent] = pending[parent] + row if parent in pending else row
            half = half * _UP
            yield part, pending[0].flatten(1), middle - half, middle + half


_CURVES = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus)


def _slope(layer: nn.Module, at: Tensor) -> Tensor:
    if isinstance(layer, nn.Tanh):
        return 1 - at.tanh().square()
    if isinstance(layer, nn.Sigmoid):
        return torch.sigmoid(at) * torch.sigmoid(-at)
    if isinstance(layer, nn.Softplus):
        return torch.sigmoid(layer.beta * at)
    below = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
    return torch.where(at > 0, 1.0, below).to(at)


def _chord(layer: nn.Module, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The slope of the line from end to end of each interval; any other would be sound as well."""
    wide = high - low
    chord = (layer(high) - layer(low)) / wide.clamp_min(1e-300)
    return torch.where(wide > 1e-7 * (1 + value.abs()), chord, _slope(layer, value))


def _rest(
    layer: nn.Module, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds on phi(h) - phi(v) - slope (h - v) for h in [low, high].

    Its extremes lie at the ends, at the kink, or where phi' is the slope. Of such a point as
    computed, c, the true one is off by no more than the interval; between the two |phi' - slope| is
    largest at c.
    """
    start = layer(value)
    points = [low, high]
    if isinstance(layer, nn.Tanh):
        turn = torch.atanh((1 - slope).clamp(0, 1).sqrt())
        points += [turn, -turn]
    elif isinstance(layer, nn.Sigmoid):
        root = (1 - 4 * slope).clamp(0, 1).sqrt()
        turn = torch.log1p(root) - torch.log1p(-root)
        points += [turn, -turn]
    elif isinstance(layer, nn.Softplus):
        points.append(torch.logit(slope.clamp(0, 1)) / layer.beta)
    else:
        points.append(torch.zeros_like(value))
    smooth = not isinstance(layer, nn.ReLU | nn.LeakyReLU)
    near = 1e-6 * (1 + value.abs())
    least, most = torch.full_like(value, math.inf), torch.full_like(value, -math.inf)
    for i, point in enumerate(points):
        if i >= 2:
            inside = (point >= low - near) & (point <= high + near)
            point = torch.where(inside, point, low)
        image = layer(point)
        rest = image - start - slope * (point - value)
        doubt = ROUNDING * (image.abs() + start.abs() + (slope * (point - value)).abs())
        if i >= 2 and smooth:
            miss = (_slope(layer, point) - slope).abs() + ROUNDING
            doubt = doubt + torch.where(inside, miss * (high - low + 2 * near), 0.0)
        if isinstance(layer, nn.Softplus):  # torch takes the line beyond its threshold
            doubt = doubt + 2 * math.exp(-layer.threshold) / layer.beta
        least, most = torch.minimum(least, rest - doubt), torch.maximum(most, rest + doubt)
    return least, most


def _linear(layer: nn.Module, parent: int, shape: tuple[int, ...]) -> _Linear:
    """The step of an affine layer that reads features of `shape`."""
    if type(layer) is nn.Linear:
        return _dense(layer.weight, layer.bias, parent)
    if type(layer) in (nn.Conv2d, nn.ConvTranspose2d):
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        return _convolution(layer, parent, shape)
    if type(layer) in (nn.Flatten, nn.Unflatten):
        return _Linear(
            parent, lambda x, _: layer(x), lambda y: y.reshape(-1, *shape), None, 0, moves=True
        )
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        factor, mean = batch_norm_factor(layer), torch.as_tensor(layer.running_mean).double()
        bias = -mean * factor
        if layer.bias is not None:
            bias = bias + layer.bias.detach().double()
        ones = [1] * (len(shape) - 1)
        return _scaling(factor.view(-1, *ones), bias.view(-1, *ones), parent)
    if type(layer) is Scale:
        return _scaling(torch.tensor(layer.factor, dtype=torch.float64), None, parent)
    raise UnsupportedError(f"no linear bounds are known for {type(layer).__name__}")


def _ways(weight: Tensor) -> dict[str, Tensor]:
    weight = weight.detach().double()
    return {"plain": weight, "sizes": weight.abs(), "squares": weight.square()}


def _scaling(factor: Tensor, bias: Tensor | None, parent: int) -> _Linear:
    ways = _ways(factor)
    return _Linear(parent, lambda x, way: x * ways[way], lambda y: y * ways["plain"], bias, 16)


def _dense(weight: Tensor, bias: Tensor | None, parent: int) -> _Linear:
    ways = _ways(weight)
    return _Linear(
        parent,
        lambda x, way: functional.linear(x, ways[way]),
        lambda y: y @ ways["plain"],
        None if bias is None else bias.detach().double(),
        sum(weight.shape),
    )


def _convolution(
    layer: nn.Conv2d | nn.ConvTranspose2d, parent: int, shape: tuple[int, ...]
) -> _Linear:
    padding = layer.padding
    if layer.padding_mode != "zeros" or isinstance(padding, str):
        raise UnsupportedError(f"padding {padding!r}, mode {layer.padding_mode!r}")
    ways = _ways(layer.weight)
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups
    height, width = shape[-2:]

    def down(x: Tensor, way: str) -> Tensor:
        return functional.conv2d(x, ways[way], None, stride, padding, dilation, groups)

    def up(x: Tensor, way: str, more: tuple[int, ...]) -> Tensor:
        return functional.conv_transpose2d(
            x, ways[way], None, stride, padding, more, groups, dilation
        )

    if isinstance(layer, nn.ConvTranspose2d):
        more = layer.output_padding

        def apply(x: Tensor, way: str) -> Tensor:
            return up(x, way, more)

        def transpose(y: Tensor) -> Tensor:
            return down(y, "plain")[..., :height, :width]
    else:
        apply = down

        def transpose(y: Tensor) -> Tensor:
            sides = zip(
                shape[-2:], y.shape[-2:], stride, padding, dilation, layer.kernel_size, strict=True
            )
            left = tuple(n - ((k - 1) * s - 2 * p + d * (t - 1) + 1) for n, k, s, p, d, t in sides)
            return up(y, "plain", left)

    bias = None if layer.bias is None else layer.bias.detach().double()[:, None, None]
    terms = sum(layer.weight.shape[:2]) * layer.weight[0, 0].numel()
    return _Linear(parent, apply, transpose, bias, terms)


def _like(radius: Tensor, features: Tensor) -> Tensor:
    return radius.reshape(-1, *[1] * (features.ndim - 1))
