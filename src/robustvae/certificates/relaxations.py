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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustvae.certificates.graphs import Add, Affine, Graph, Part, Sum, out_of_place
from robustvae.certificates.layers import ROUNDING, batch_norm_factor, slopes
from robustvae.errors import RangeError, ShapeError, UnsupportedError, check_choice
from robustvae.models.lipschitz import GroupSort, MaxMin, Scale
from robustvae.models.orthogonal import MoveChannels
from robustvae.norms import gamma, spectral_norm_bounds

Method = Literal["ibp", "crown-ibp", "crown"]
METHODS: tuple[Method, ...] = ("ibp", "crown-ibp", "crown")
"""From the cheapest to the tightest."""

MEMORY = 2**27
WORK = 2**36
_PRICES = 4
_UP = 1 + 1e-11  # over the rounding of a few operations and of sums of up to 40,000 positive terms


@final
@dataclass(frozen=True, eq=False)
class Cause:
    """One activation's share in the rest of a network: matrix @ e, with e bounded.

    Attributes:
        matrix: (k, U), over the U features whose lines are not exact.
        most: Bounds on |e_i|, (U,).
        total: Bound on the l2 norm of e.
    """

    matrix: Tensor
    most: Tensor
    total: float

    def length(self, scale: Tensor) -> float:
        """A bound on the l2 norm of scale * (matrix @ e), for positive `scale`, (k,)."""
        scaled = self.matrix * scale[:, None]
        apart = float((scaled.abs() @ self.most).norm())
        return min(apart, operator_bound(scaled) * self.total) * _UP


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
        causes: For each input, what the rest is made of: a sum of matrices times vectors.
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
    causes: tuple[tuple[Cause, ...], ...]
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
        # a cause in each coordinate, or as a whole
        whole = [
            sum((c.length(w) for c in causes), 0.0)
            for causes, w in zip(self.causes, scale, strict=True)
        ]
        rest = torch.minimum(rest, torch.as_tensor(whole, dtype=torch.float64) * _UP)
        across = self._across(self.slope * scale[:, :, None])
        return torch.minimum(box, (across * self.radius + rest) * _UP)

    def _across(self, matrices: Tensor) -> Tensor:
        """Bounds on the operator norm from the ball's norm to l2, (B,)."""
        across = spectral_norm_bounds(matrices) * _UP
        if self.norm == "linf":
            # |A s|^2 = sum_ij (A'A)_ij s_i s_j for |s_i| <= 1
            rows = matrices.abs().sum(2).square().sum(1)
            gram = (matrices.mT @ matrices).abs().sum((1, 2))
            gram = gram + gamma(matrices.shape[1] + 8) * rows
            across = torch.minimum(across * matrices.shape[2] ** 0.5, gram.sqrt()) * _UP
        return across


@final
class Relaxation:
    """A feed-forward network, or several heads on one trunk, made ready for bounds over balls.

    Covered: `Linear`, `Conv2d`, `ConvTranspose2d`, `Flatten`, `Unflatten`, `ReLU`, `LeakyReLU`,
    `Tanh`, `Sigmoid`, `Softplus`, `GroupSort` and `MaxMin` over the last axis, `MoveChannels`,
    batch norm in evaluation mode, `Scale`, `Identity`, `Dropout`, `Add`, `Sequential` of them, and
    a `Graph`, what a trace of other modules gives.

    Args:
        trunk: What all heads read.
        heads: Networks on the trunk's output; without any the trunk's outputs are bounded.
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
        ends = self._take_graph(trunk, 0) if type(trunk) is Graph else (self._take(trunk, 0),)
        self._outputs = [self._take(head, ends[0]) for head in heads] or list(ends)

    def over(
        self,
        x: Tensor,
        radius: Tensor,
        *,
        norm: str = "l2",
        method: Method = "crown",
        box: tuple[float, float] | None = None,
        memory: int = MEMORY,
        work: int = WORK,
    ) -> tuple[LinearBounds, ...]:
        """Bounds of each head over the ball around each input.

        "ibp" carries intervals from layer to layer; "crown-ibp" takes its lines from those
        intervals and substitutes them backwards from the outputs; "crown" tightens the interval
        before each activation in the same way first, where it matters. Whatever the method, an
        interval is never wider than that of "ibp".

        Args:
            x: Centers, (B, *shape).
            radius: Of each ball, (B,).
            norm: "l2" or "linf".
            method: The tightest to use; a cheaper one is taken where this one is too dear.
            box: Least and largest value of every pixel, if only points within these count.
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
        low, high = (-math.inf, math.inf) if box is None else box
        if not bool(((x >= low) & (x <= high)).all()):
            raise RangeError(f"x must lie in the box, [{low:g}, {high:g}]")
        ends = (low, high)
        sweep = _Sweep(self._steps, x.double(), radius.double(), norm, ends, method, memory, work)
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
        if "forward" in vars(network):
            raise UnsupportedError(f"a {type(network).__name__} with a forward of its own")
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
            return self._append(_Activation(node, out_of_place(network)), self._shapes[node])
        linear = _linear(network, node, self._shapes[node])
        zero = torch.zeros(1, *self._shapes[node], dtype=torch.float64)
        return self._append(linear, tuple(linear.apply(zero, "plain").shape[1:]))

    def _take_graph(self, graph: Graph, node: int) -> tuple[int, ...]:
        """Append the steps of a graph that reads `node`; returns the nodes of its outputs."""

        def step(layer: nn.Module, nodes: tuple[int, ...]) -> int:
            if type(layer) is Sum:
                return self._append(_Sum(nodes), self._shapes[nodes[0]])
            (read,) = nodes
            return self._take(layer, read)

        return graph.walk(node, step)

    def _take_sort(self, layer: nn.Module, node: int) -> int:
        """The last axis sorted, by exchanges of neighbors where a group has more than two."""
        size = self._shapes[node][-1]
        index = torch.arange(size)
        if isinstance(layer, MaxMin):
            most, least = index.chunk(2)
            return self._take_exchange(node, most, least)
        assert isinstance(layer, GroupSort)
        place = index % layer.group
        for turn in range(1 if layer.group == 2 else layer.group):
            least = index[(place % 2 == turn % 2) & (place < layer.group - 1)]
            if len(least):
                node = self._take_exchange(node, least + 1, least)
        return node

    def _take_exchange(self, node: int, most: Tensor, least: Tensor) -> int:
        """Pairs in order: max(a, b) = a + relu(b - a) and min(a, b) = b - relu(b - a)."""
        *lead, size = self._shapes[node]
        first, second = torch.minimum(most, least), torch.maximum(most, least)
        pairs = len(most)
        eye, bend = torch.eye(size, dtype=torch.float64), size + torch.arange(pairs)
        apart = torch.cat([eye, eye[second] - eye[first]])
        join = torch.cat([eye, torch.zeros(size, pairs, dtype=torch.float64)], 1)
        join[most] = join[least] = 0
        join[most, first] = join[least, second] = join[most, bend] = 1
        join[least, bend] = -1
        wide = self._append(_dense(apart, None, node), (*lead, size + pairs))
        bent = self._append(_Activation(wide, nn.ReLU(), after=size), (*lead, size + pairs))
        sorted_ = _dense(join, None, bent)
        return self._append(replace(sorted_, pairs=(node, most, least)), (*lead, size))

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
    """Whether it only rearranges features, or leaves some out."""
    window: tuple[Callable[[Tensor], Tensor], tuple[int, ...], tuple[int, ...]] | None = None
    """How it takes back rows that see a window: by what, the stride and the padding."""
    pairs: tuple[int, Tensor, Tensor] | None = None
    """Of a sort: the node it sorts, and where the larger and the smaller of each pair go."""


@dataclass(frozen=True)
class _Activation:
    """An elementwise step on the last axis from `after` on; what is before it passes."""

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
        self,
        steps: list[_Step],
        x: Tensor,
        radius: Tensor,
        norm: str,
        box: tuple[float, float],
        method: Method,
        memory: int,
        work: int,
    ) -> None:
        self.steps, self.radius, self.norm = steps, radius, norm
        self.memory, self.work, self.backwards = memory, work, method == "crown"
        self.box = math.isfinite(box[0]) or math.isfinite(box[1])
        ball = _like(radius, x).expand_as(x)
        low, high = ((end - x) * _UP for end in box)
        low, high = torch.maximum(-ball, low), torch.minimum(ball, high)
        self.states = [_State(x, low, high, x.abs() + ball, 4, 0)]
        self.lines: dict[int, _Line] = {}
        self.rows: dict[int, _Rows] = {}

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
        low, high = middle - half, middle + half
        if before.depth == 0 and self.norm == "l2":
            rows = step.apply(torch.ones_like(before.value), "squares").sqrt()
            reach = rows * _like(self.radius, rows)
            low, high = torch.maximum(low, -reach), torch.minimum(high, reach)
        if step.pairs is not None:
            origin, most, least = step.pairs
            pair = self.states[origin]
            for end, moved in ((pair.value + pair.low, low), (pair.value + pair.high, high)):
                one, two = end[..., most], end[..., least]
                moved[..., most] = torch.maximum(one, two) - value[..., most]
                moved[..., least] = torch.minimum(one, two) - value[..., least]
        depth = 0 if step.moves and before.depth == 0 else before.depth + 1
        state = _State(value, low, high, size, before.terms + 4 * step.terms + 32, depth)
        return replace(state, low=low - state.slack, high=high + state.slack)

    def _bent(self, node: int, step: _Activation) -> _State:
        before = self.states[step.parent]
        layer, after = step.layer, step.after
        value, low, high = (p[..., after:] for p in (before.value, before.low, before.high))
        off = ROUNDING * (value.abs() + high - low)
        low, high = value + low - off, value + high + off
        slope = _chord(layer, value, low, high)
        least, most = _rest(layer, slope, value, low, high)
        moved = _rest(layer, torch.zeros_like(slope), value, low, high)
        ratio, doubt = _ratio(layer, slope, value, low, high)
        bent = layer(value)
        size = slope.abs() * before.size[..., after:] + bent.abs() + least.abs() + most.abs()

        def whole(passed: Tensor | float, part: Tensor) -> Tensor:
            if isinstance(passed, float):
                passed = torch.full_like(before.value, passed)
            return torch.cat([passed[..., :after], part], -1) if after else part

        line = _Line(
            slope=whole(1.0, slope),
            middle=whole(0.0, (least + most) / 2).flatten(1),
            half=whole(0.0, (most - least) / 2 * _UP).flatten(1),
            ratio=whole(0.0, ratio).flatten(1),
            total=torch.zeros(len(value), dtype=torch.float64),
        )
        self.lines[node] = line
        for b in range(len(value)):
            line.total[b] = self._total(node, b, whole(0.0, doubt).flatten(1)[b])
        self.rows.clear()
        return _State(
            whole(before.value, bent),
            whole(before.low, moved[0]),
            whole(before.high, moved[1]),
            whole(before.size, size),
            before.terms + 4 * bent[0].numel() + 32,
            before.depth + 1,
        )

    def _total(self, node: int, b: int, doubt: Tensor) -> float:
        """A bound on the l2 norm of all that an activation's lines leave out, of one input.

        Each part is at most ratio * |h - v|, and the h move together: at first by one matrix times
        p - x, then by what the activations before left out.
        """
        line, step = self.lines[node], self.steps[node - 1]
        assert isinstance(step, _Activation)
        box = float(line.most(b).norm()) * _UP
        features = line.loose(b)
        if len(features) == 0 or not self.backwards:
            return box
        rows = self.rows.get(b)
        if rows is None:
            if (
                self.states[step.parent].depth > 1
                or self._bytes(len(features), step.parent) > self.work
            ):
                return box
            rows = self._backward(step.parent, b, features)
        else:
            rows = rows.only(torch.isin(rows.features, features))
        if rows.causes is None or len(rows.features) < len(features):
            return box
        ratio = line.ratio[b, features]
        radius = float(self.radius[b]) * (
            rows.slope.shape[1] ** 0.5 if self.norm == "linf" else 1.0
        )
        total = operator_bound(rows.slope * ratio[:, None]) * radius
        total += sum(cause.length(ratio) for cause in rows.causes)
        slack = self.states[step.parent].slack[b].flatten()[features]
        return min(box, (total + float((ratio * slack).norm() + doubt.norm())) * _UP)

    def tighten(self, step: _Activation) -> bool:
        """Narrow the interval before an activation by backward rows; False if that is too dear."""
        before = self.states[step.parent]
        if before.depth <= (0 if self.box and self.norm == "l2" else 1):
            return True
        needed = before.high > before.low
        if _is_kinked(step.layer):
            needed = (before.value + before.low < 0) & (before.value + before.high > 0)
        needed[..., : step.after] &= step.after == 0
        if self._bytes(int(needed.sum()), step.parent) > self.work:
            return False
        low, high = before.low.flatten(1).clone(), before.high.flatten(1).clone()
        for b, mask in enumerate(needed.flatten(1)):
            features = mask.nonzero()[:, 0]
            rows = self.rows[b] = self._backward(step.parent, b, features)
            down, up = self._across(-rows.slope, b), self._across(rows.slope, b)
            slack = before.slack[b].flatten()[features]
            low[b, features] = torch.maximum(low[b, features], rows.low - down - slack)
            high[b, features] = torch.minimum(high[b, features], rows.high + up + slack)
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
        causes: list[tuple[Cause, ...]] = []
        if method != "ibp" and self._bytes(batch * width, node) <= self.work:
            every = [self._backward(node, b, torch.arange(width)) for b in range(batch)]
            slope = torch.stack([rows.slope for rows in every])
            low = torch.stack([rows.low for rows in every]) - slack
            high = torch.stack([rows.high for rows in every]) + slack
            down = torch.stack([self._across(-rows.slope, b) for b, rows in enumerate(every)])
            up = torch.stack([self._across(rows.slope, b) for b, rows in enumerate(every)])
            lower = torch.maximum(lower, low - down)
            upper = torch.minimum(upper, high + up)
            for b, rows in enumerate(every):
                own = Cause(torch.eye(width, dtype=torch.float64), slack[b], math.inf)
                least = torch.maximum(rows.high, -rows.low)
                given = (
                    (Cause(own.matrix, least, math.inf),) if rows.causes is None else rows.causes
                )
                causes.append((*given, own))
        return LinearBounds(
            value=state.value.flatten(1),
            slope=slope,
            low=low,
            high=high,
            lower=lower,
            upper=upper,
            causes=tuple(causes),
            radius=self.radius,
            norm=self.norm,
            method="ibp" if slope is None else method,
        )

    def _bytes(self, rows: int, node: int) -> int:
        return 8 * rows * sum(state.value[0].numel() for state in self.states[: node + 1])

    def _across(self, slope: Tensor, b: int) -> Tensor:
        """The most that slope (p - x) can be, for each row.

        In a box and an l2 ball by the dual: v radius^2 / 2 + sum_i max_d [slope_i d - v d^2 / 2]
        for any v >= 0, d within pixel i's ends; the least over a few v, the last nearly optimal.
        """
        radius, ends = self.radius[b], self.states[0]
        if not self.box or float(radius) == 0:
            size = slope.norm(dim=1) if self.norm == "l2" else slope.abs().sum(1)
            return size * radius * _UP
        low, high = ends.low[b].flatten(), ends.high[b].flatten()
        most = torch.maximum(slope * low, slope * high).sum(1)
        if self.norm == "linf":
            return most * _UP
        open_ = slope * torch.where(slope > 0, high > 0, low < 0)
        price = open_.norm(dim=1) / radius
        for _ in range(_PRICES):
            step = (slope / price.clamp_min(1e-300)[:, None]).clamp(low, high)
            gain = (step * (slope - price[:, None] * step / 2)).sum(1)
            most = torch.minimum(most, price * radius.square() / 2 + gain)
            stopped = (step == low) | (step == high)
            left = (radius.square() - (step * stopped).square().sum(1)).clamp_min(1e-300)
            price = (slope * ~stopped).norm(dim=1) / left.sqrt()
        return most * _UP

    def _backward(self, node: int, b: int, features: Tensor) -> _Rows:
        """The rows of some features of a node, for one input: f = v + slope (p - x) + rest."""
        shape = self.states[node].value.shape[1:]
        widest = max(state.value[0].numel() for state in self.states[: node + 1])
        loose = {n: line.loose(b) for n, line in self.lines.items() if n <= node}
        kept = 8 * len(features) * sum(len(columns) for columns in loose.values())
        found: list[_Rows] = []
        for part in features.split(max(1, self.memory // (8 * 4 * widest))):
            pending = {node: _one_hot(part, shape)}
            low, high = torch.zeros(2, len(part), dtype=torch.float64)
            causes: list[Cause] = []
            for n in range(node, 0, -1):
                if n not in pending:
                    continue
                row, step = pending.pop(n), self.steps[n - 1]
                if isinstance(step, _Activation):
                    line, columns = self.lines[n], loose[n]
                    matrix = _whole(row).flatten(1)[:, columns]
                    middle = matrix @ line.middle[b, columns]
                    half = matrix.abs() @ line.half[b, columns] * _UP
                    whole = matrix.norm(dim=1) * line.total[b] * _UP
                    low = low + torch.maximum(middle - half, -whole)
                    high = high + torch.minimum(middle + half, whole)
                    if kept <= self.memory and len(columns):
                        causes.append(Cause(matrix, line.most(b)[columns], float(line.total[b])))
                    row = (
                        row.times(line.slope[b])
                        if isinstance(row, _Window)
                        else row * line.slope[b]
                    )
                elif isinstance(step, _Linear):
                    seen = self.states[step.parent].value.shape[1:]
                    if isinstance(row, _Window) and step.window is not None:
                        row = row.through(*step.window, seen)
                    else:
                        row = step.transpose(_whole(row))
                for parent in step.parents if isinstance(step, _Sum) else (step.parent,):
                    other = pending.get(parent)
                    pending[parent] = row if other is None else _whole(other) + _whole(row)
            slope = _whole(pending[0]).flatten(1)
            found.append(
                _Rows(part, slope, low, high, tuple(causes) if kept <= self.memory else None)
            )
        return _Rows.joined(found)


@dataclass(frozen=True)
class _Window:
    """Rows that are zero outside a window of each: what few features see of an image.

    `data` is (R, C, h, w), its corner at (`top`, `left`) of images of `size`; zero outside them.
    """

    data: Tensor
    top: Tensor
    left: Tensor
    size: tuple[int, int]

    def places(self) -> tuple[Tensor, Tensor]:
        """The pixel of each entry, (R, h w), clamped to the image, and whether it is within."""
        rows = self.top[:, None] + torch.arange(self.data.shape[2])
        columns = self.left[:, None] + torch.arange(self.data.shape[3])
        height, width = self.size
        down, across = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        place = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
        return place.flatten(1), (down[:, :, None] & across[:, None]).flatten(1)

    def through(
        self,
        grow: Callable[[Tensor], Tensor],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        shape: torch.Size,
    ) -> _Window | Tensor:
        """The rows before a convolution that reads `shape`."""
        size = (shape[-2], shape[-1])
        top, left = self.top * stride[0] - padding[0], self.left * stride[1] - padding[1]
        wide = _Window(grow(self.data), top, left, size)
        _, within = wide.places()
        inner = wide.data * within.view(len(top), 1, *wide.data.shape[2:])
        wide = replace(wide, data=inner)
        small = inner.shape[2] < size[0] and inner.shape[3] < size[1]
        return wide if small else _whole(wide)

    def times(self, factor: Tensor) -> _Window:
        """Each row times (C, H, W)."""
        place, _ = self.places()
        seen = factor.flatten(1)[:, place].transpose(0, 1)
        return replace(self, data=self.data * seen.reshape(self.data.shape))


def _whole(rows: _Window | Tensor) -> Tensor:
    if isinstance(rows, Tensor):
        return rows
    place, _ = rows.places()
    count, channels = rows.data.shape[:2]
    flat = torch.zeros(count, channels, math.prod(rows.size), dtype=torch.float64)
    flat.scatter_add_(2, place[:, None].expand(-1, channels, -1), rows.data.flatten(2))
    return flat.unflatten(2, rows.size)


def _one_hot(features: Tensor, shape: torch.Size) -> _Window | Tensor:
    if len(shape) == 3 and len(features):
        channels, height, width = shape
        data = torch.zeros(len(features), channels, 1, 1, dtype=torch.float64)
        data[torch.arange(len(features)), features // (height * width)] = 1
        place = features % (height * width)
        return _Window(data, place // width, place % width, (height, width))
    start = torch.zeros(len(features), shape.numel(), dtype=torch.float64)
    start[torch.arange(len(features)), features] = 1
    return start.view(-1, *shape)


@dataclass(frozen=True)
class _Line:
    """The lines of an activation over B balls: slope (h - v) + middle +- half.

    What they leave out, at most `half` about `middle` in each feature, is also at most
    ratio * |h - v|, and at most `total` in l2. (B, *shape), the others but `total` flat.
    """

    slope: Tensor
    middle: Tensor
    half: Tensor
    ratio: Tensor
    total: Tensor

    def loose(self, b: int) -> Tensor:
        """The features of an input whose lines are not exact."""
        return ((self.half[b] > 0) | (self.middle[b] != 0)).nonzero()[:, 0]

    def most(self, b: int) -> Tensor:
        """The most that is left out of each feature."""
        return self.middle[b].abs() + self.half[b]


@dataclass(frozen=True)
class _Rows:
    features: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor
    causes: tuple[Cause, ...] | None

    def only(self, chosen: Tensor) -> _Rows:
        causes = self.causes
        if causes is not None:
            causes = tuple(replace(cause, matrix=cause.matrix[chosen]) for cause in causes)
        return _Rows(
            self.features[chosen], self.slope[chosen], self.low[chosen], self.high[chosen], causes
        )

    @staticmethod
    def joined(parts: Sequence[_Rows]) -> _Rows:
        causes = None
        if parts[0].causes is not None:
            causes = tuple(
                replace(group[0], matrix=torch.cat([cause.matrix for cause in group]))
                for group in zip(*(part.causes or () for part in parts), strict=True)
            )
        features, slope, low, high = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("features", "slope", "low", "high")
        )
        return _Rows(features, slope, low, high, causes)


def operator_bound(matrix: Tensor) -> float:
    """A bound on the spectral norm of a matrix, (n, k), loose by 8th roots where it is large.

    ||G G||_F^(1/4) with G = M M^T, or the verified norm where that costs little.
    """
    if matrix.numel() == 0:
        return 0.0
    if min(matrix.shape) <= 300:
        return float(spectral_norm_bounds(matrix[None])[0])
    narrow = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    gram = narrow @ narrow.mT
    gram = (gram + gram.mT) / 2
    lost = gamma(sum(matrix.shape) + 8) * float(narrow.square().sum())
    fourth = float((gram @ gram).norm()) + gamma(2 * len(gram) + 8) * float(gram.norm()) ** 2
    return float((fourth**0.5 + lost) ** 0.5 * _UP)


_CURVES = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus)


def _is_kinked(layer: nn.Module) -> bool:
    return isinstance(layer, nn.ReLU | nn.LeakyReLU)


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
    if _is_kinked(layer):
        return torch.where((low < 0) & (high > 0), chord, _slope(layer, (low + high) / 2))
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
    smooth = not _is_kinked(layer)
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
    if not smooth:
        exact = ((low >= 0) | (high <= 0)) & (slope == _slope(layer, (low + high) / 2))
        least, most = (torch.where(exact, 0.0, end) for end in (least, most))
    return least, most


def _ratio(
    layer: nn.Module, slope: Tensor, value: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds c and doubt: |phi(h) - phi(v) - slope (h - v)| <= c |h - v| + doubt in [low, high].

    By the secants from v, which for one kink grow or fall from end to end; else by the slopes.
    """
    doubt = 4 * ROUNDING * (layer(value).abs() + value.abs() + high - low)
    if _is_kinked(layer):
        ends = (low, high)
        secants = [
            torch.where(
                (end - value).abs() > 1e-12 * (1 + value.abs()),
                _secant(layer, value, end),
                _slope(layer, value),
            )
            for end in ends
        ]
        crossed = (low < 0) & (high > 0)
        ratio = torch.maximum(*((secant - slope).abs() for secant in secants))
        return ratio * _UP * crossed, doubt * crossed
    if isinstance(layer, nn.Softplus):
        doubt = doubt + 2 * math.exp(-layer.threshold) / layer.beta
    least, most = slopes(layer, (low + high) / 2, (high - low) / 2 * _UP)
    return torch.maximum(most - slope, slope - least).clamp_min(0) + ROUNDING, doubt


def _secant(layer: nn.Module, value: Tensor, end: Tensor) -> Tensor:
    gap = end - value
    return (layer(end) - layer(value)) / torch.where(gap == 0, 1.0, gap)


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
    if type(layer) is MoveChannels:
        back = MoveChannels(last=not layer.last)
        return _Linear(parent, lambda x, _: layer(x), back, None, 0, moves=True)
    if type(layer) is Part:
        sides = (layer.start, shape[0] - layer.stop)

        def padded(y: Tensor) -> Tensor:
            return functional.pad(y, (0, 0) * (y.ndim - 2) + sides)

        return _Linear(parent, lambda x, _: layer(x), padded, None, 0, moves=True)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        factor, mean = batch_norm_factor(layer), torch.as_tensor(layer.running_mean).double()
        bias = -mean * factor
        if layer.bias is not None:
            bias = bias + layer.bias.detach().double()
        ones = [1] * (len(shape) - 1)
        return _scaling(factor.view(-1, *ones), bias.view(-1, *ones), parent)
    if type(layer) is Scale:
        return _scaling(torch.tensor(layer.factor, dtype=torch.float64), None, parent)
    if type(layer) is Affine:
        factor, shift = (torch.tensor(n, dtype=torch.float64) for n in (layer.factor, layer.shift))
        return _scaling(factor, shift, parent)
    raise UnsupportedError(f"no linear bounds are known for {type(layer).__name__}")


def _ways(weight: Tensor) -> dict[str, Tensor]:
    weight = weight.detach().double()
    return {"plain": weight, "sizes": weight.abs(), "squares": weight.square()}


def _scaling(factor: Tensor, bias: Tensor | None, parent: int) -> _Linear:
    ways = _ways(factor)
    step = _Linear(parent, lambda x, way: x * ways[way], lambda y: y * ways["plain"], bias, 16)
    return replace(step, window=(step.transpose, (1, 1), (0, 0)))


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

    def up(x: Tensor, way: str, more: tuple[int, ...] | int, padding: Any = padding) -> Tensor:
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
    step = _Linear(parent, apply, transpose, bias, terms)
    if isinstance(layer, nn.ConvTranspose2d):
        return step
    return replace(step, window=(lambda y: up(y, "plain", 0, 0), stride, padding))


def _like(radius: Tensor, features: Tensor) -> Tensor:
    return radius.reshape(-1, *[1] * (features.ndim - 1))
