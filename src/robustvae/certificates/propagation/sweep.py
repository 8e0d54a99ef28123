"""Linear bound propagation: IBP, CROWN-IBP and backward CROWN for l2 and linf balls.

Every activation is enclosed between two parallel lines over the interval that its input can reach,
so that one matrix serves both sides:

    f(p) - f(x) = slope (p - x) + remainder,    low <= remainder <= high,    for p in the ball.

Parallel lines are what lets the length of a whole vector be bounded by a spectral norm, where lines
of different slopes bound it coordinate by coordinate. All in float64; what rounding can do is
bounded by one pass of absolute values, and added to the remainder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.arguments import checked_fields
from robustvae.certificates.propagation.bounds import METHODS, LinearBounds, Method
from robustvae.certificates.propagation.graph import Add, Graph
from robustvae.certificates.propagation.numbers import UP
from robustvae.certificates.propagation.operator import operator_of
from robustvae.certificates.propagation.rows import (
    Cause,
    CurveLine,
    Line,
    Rows,
    Window,
    dense,
    one_hot,
    operator_bound,
)
from robustvae.certificates.propagation.steps import (
    Ball,
    CurveStep,
    LinearStep,
    State,
    Step,
    SumStep,
)
from robustvae.certificates.propagation.trace import out_of_place
from robustvae.errors import RangeError, ShapeError, UnsupportedError, check_choice

MEMORY = 2**27
"""Bytes of one chunk of backward rows: beyond the last cache larger chunks gain nothing."""

WORK = 2**36
"""Bytes that all rows to one layer may take: about ten seconds of one core."""

# Trials of the dual price in a box: the third already gains less than a thousandth.
_PRICES = 4


@checked_fields
@final
class Relaxation:
    """A feed-forward network, or several heads on one trunk, made ready for bounds over balls.

    Covered are the layers that have an operator (`propagation.operators`), batch norm in evaluation
    mode among them, `Sequential` and `Add` of them, and a `Graph`, what a trace of other modules
    gives.

    Args:
        trunk: What all heads read.
        heads: Networks on the trunk's output; without any the trunk's outputs are bounded.
        shape: Of one input, without the batch.

    Raises:
        UnsupportedError: A layer that is not covered, or not admitted, by name.
        NonFiniteError: A NaN or an infinity in the weights.

    References:
        Zhang et al., 2018 (CROWN); Zhang et al., 2020 (CROWN-IBP); Weng et al., 2018, for the
        parallel lines of a ReLU.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from robustvae.certificates.propagation import Relaxation
        >>> net = Relaxation(nn.ReLU(), shape=(2,))
        >>> bounds, = net.over(torch.tensor([[3.0, -3.0]]), torch.tensor([1.0]))
        >>> bounds.slope[0]
        tensor([[1., 0.],
                [0., 0.]], dtype=torch.float64)
    """

    def __init__(self, trunk: nn.Module, *heads: nn.Module, shape: Sequence[int]) -> None:
        """Take the networks apart."""
        gate.admit_process()
        self._steps: list[Step] = []
        self._shapes: list[tuple[int, ...]] = [tuple(shape)]
        # nodes whose features something else reads as well, so that nothing may change them
        self._shared = {0}
        ends = self._take_graph(trunk, 0) if type(trunk) is Graph else (self._take(trunk, 0),)
        if len(heads) > 1:
            self._shared.add(ends[0])
        self._outputs = [self._take(head, ends[0]) for head in heads] or list(ends)

    @torch.no_grad()
    def value(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the steps compute of the inputs, (B, *shape), in float64: each output, (B, ...).

        The network that is bounded; to be compared with the network that runs.
        """
        values = [x.detach().to("cpu", torch.float64)]
        for step in self._steps:
            values.append(step.value([values[parent] for parent in step.parents]))
        return tuple(values[output] for output in self._outputs)

    @torch.no_grad()
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
            RangeError: A center outside the box, or not finite.
        """
        gate.admit_process()
        check_choice("norm", norm, ("l2", "linf"))
        check_choice("method", method, METHODS)
        if tuple(x.shape[1:]) != self._shapes[0]:
            raise ShapeError(f"x must be (B, {self._shapes[0]}), got {tuple(x.shape)}")
        low, high = (-math.inf, math.inf) if box is None else box
        if not bool(((x >= low) & (x <= high) & x.isfinite()).all()):
            raise RangeError(f"x must be finite and lie in the box, [{low:g}, {high:g}]")
        sweep = _Sweep(self._steps, x.double(), radius.double(), norm, (low, high), memory, work)
        sweep.backwards = method == "crown"
        name: Method = method
        for node, step in enumerate(self._steps, start=1):
            if method == "crown" and isinstance(step, CurveStep):
                name = name if sweep.tighten(step) else "crown-ibp"
            elif method == "crown" and sweep.is_nonlinear(step):
                name = name if sweep.tighten_all(step.parents[0]) else "crown-ibp"
            sweep.advance(node, step)
        return tuple(sweep.bounds(output, name) for output in self._outputs)

    def shape(self, node: int) -> tuple[int, ...]:
        """Of a node's features, without the batch."""
        return self._shapes[node]

    def append(self, step: Step, shape: tuple[int, ...]) -> int:
        """Append a step; returns its node."""
        if isinstance(step, LinearStep) and step.moves and step.parents[0] in self._shared:
            self._shared.add(len(self._steps) + 1)  # a view of the same memory
        self._steps.append(step)
        self._shapes.append(shape)
        return len(self._steps)

    def _take(self, network: nn.Module, node: int) -> int:
        """Append the steps of a network that reads `node`; returns the node of its output."""
        if type(network) is nn.Sequential:
            gate.admit(network)
            for layer in network:
                node = self._take(layer, node)
            return node
        if type(network) is Add:
            gate.admit(network)
            ends = tuple(self._take(branch, node) for branch in network.branches)
            if len({self.shape(end) for end in ends}) > 1:
                raise ShapeError("the branches of an Add must give features of one shape")
            return self.append(SumStep(ends), self.shape(ends[0]))
        if type(network) is Graph:
            (end,) = self._take_graph(network, node)
            return end
        if getattr(network, "inplace", False):
            if node in self._shared:
                raise UnsupportedError(
                    f"an in-place {type(network).__name__} of features that are read elsewhere "
                    "too; use inplace=False"
                )
            network = out_of_place(network)
        return operator_of(network).build(self, (node,))

    def _take_graph(self, graph: Graph, node: int) -> tuple[int, ...]:
        """Append the steps of a graph that reads `node`; returns the nodes of its outputs."""
        gate.admit(graph)
        readers = [k for reads in graph.reads for k in reads] + list(graph.ends)
        nodes = [node]
        for layer, reads in zip(graph.layers, graph.reads, strict=True):
            self._shared.update(nodes[k] for k in reads if readers.count(k) > 1)
            if len(reads) == 1:
                nodes.append(self._take(layer, nodes[reads[0]]))
            else:
                parents = tuple(nodes[k] for k in reads)
                nodes.append(operator_of(layer).build(self, parents))
        return tuple(nodes[end] for end in graph.ends)


class _Sweep:
    """One pass over the network, with what backward rows need of the activations passed."""

    backwards = True

    def __init__(
        self,
        steps: list[Step],
        x: Tensor,
        radius: Tensor,
        norm: str,
        box: tuple[float, float],
        memory: int,
        work: int,
    ) -> None:
        self.steps, self.radius, self.norm = steps, radius, norm
        self.memory, self.work = memory, work
        self.box = math.isfinite(box[0]) or math.isfinite(box[1])
        ball = radius.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
        low, high = ((end - x) * UP for end in box)
        low, high = torch.maximum(-ball, low), torch.minimum(ball, high)
        # 4 terms: p = x + (p - x) in float64, and the ends of the box
        self.states = [State(x, low, high, x.abs() + ball, 4, 0)]
        self.lines: dict[int, Line] = {}
        # rows of the node before the activation that comes next, by input
        self.rows: dict[int, Rows] = {}

    def is_nonlinear(self, step: Step) -> bool:
        """Whether a step has lines."""
        return type(step).lines is not Step.lines

    def advance(self, node: int, step: Step) -> None:
        """The next node's intervals from those before it, and a nonlinear step's lines."""
        before = [self.states[parent] for parent in step.parents]
        if self.is_nonlinear(step):
            line = step.lines(before[0])
            assert line is not None
            self.lines[node] = line
            if isinstance(line, CurveLine):
                self._find_totals(step, line)
            self.rows.clear()
        self.states.append(step.advance(before, Ball(self.radius, self.norm)))

    def _find_totals(self, step: Step, line: CurveLine) -> None:
        """Bounds on the l2 norm of all that an activation's lines leave out, of each input.

        Each part is at most ratio * |h - v|, and the h move together: at first by one matrix times
        p - x, then by what the activations before left out.
        """
        if not self.backwards:
            return
        (parent,) = step.parents
        batch = range(len(line.total))
        loose = {b: line.loose(b) for b in batch}
        missing = {b: f for b, f in loose.items() if len(f) and b not in self.rows}
        count = sum(len(features) for features in missing.values())
        # rows that were not wanted for the interval are made only where one matrix gives them
        if missing and self.states[parent].depth <= 1 and self._bytes(count, parent) <= self.work:
            self.rows.update(self._backward(parent, missing))
        slack = self.states[parent].slack.flatten(1)
        for b in batch:
            features, rows = loose[b], self.rows.get(b)
            if len(features) == 0 or rows is None or rows.causes is None:
                continue
            rows = rows.only(torch.isin(rows.features, features))
            assert rows.causes is not None
            if len(rows.features) < len(features):
                continue
            ratio = line.ratio[b, features]
            sides = rows.slope.shape[1] ** 0.5 if self.norm == "linf" else 1.0
            total = operator_bound(rows.slope * ratio[:, None]) * float(self.radius[b]) * sides
            total += sum(cause.length(ratio) for cause in rows.causes)
            rounding = float((ratio * slack[b, features]).norm() + line.doubt[b].norm())
            line.total[b] = min(float(line.total[b]), (total + rounding) * UP)

    def tighten(self, step: CurveStep) -> bool:
        """Narrow the interval before an activation by backward rows; False if that is too dear."""
        before = self.states[step.parents[0]]
        if before.depth <= (0 if self.box and self.norm == "l2" else 1):
            return True
        _, low, high = step.interval(before)
        mask_of_needs = torch.zeros_like(before.value, dtype=torch.bool)
        mask_of_needs[..., step.after :] = ~step.curve.is_exact(low, high) & (high > low)
        return self._narrow(step.parents[0], mask_of_needs)

    def tighten_all(self, node: int) -> bool:
        """Narrow every interval of a node."""
        if self.states[node].depth <= (0 if self.box and self.norm == "l2" else 1):
            return True
        return self._narrow(node, self.states[node].high > self.states[node].low)

    def _narrow(self, node: int, needed: Tensor) -> bool:
        before = self.states[node]
        if self._bytes(int(needed.sum()), node) > self.work:
            return False
        low, high = before.low.flatten(1).clone(), before.high.flatten(1).clone()
        index = {b: mask.nonzero()[:, 0] for b, mask in enumerate(needed.flatten(1))}
        slack = before.slack.flatten(1)
        self.rows = self._backward(node, index)
        for b, rows in self.rows.items():
            features = rows.features
            down, up = self._most(-rows.slope, b), self._most(rows.slope, b)
            below = rows.low - down - slack[b, features]
            above = rows.high + up + slack[b, features]
            below = below.nan_to_num(nan=-torch.inf, neginf=-torch.inf).clamp_max(0)
            above = above.nan_to_num(nan=torch.inf, posinf=torch.inf).clamp_min(0)
            low[b, features] = torch.maximum(low[b, features], below)
            high[b, features] = torch.minimum(high[b, features], above)
        shape = before.value.shape
        self.states[node] = replace(before, low=low.view(shape), high=high.view(shape))
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
            all_rows = self._backward(node, {b: torch.arange(width) for b in range(batch)})
            rows = [all_rows[b] for b in range(batch)]
            slope = torch.stack([row.slope for row in rows])
            low = torch.stack([row.low for row in rows]) - slack
            high = torch.stack([row.high for row in rows]) + slack
            down = torch.stack([self._most(-row.slope, b) for b, row in enumerate(rows)])
            up = torch.stack([self._most(row.slope, b) for b, row in enumerate(rows)])
            # what overflowed says nothing
            lower = torch.maximum(lower, (low - down).nan_to_num(nan=-torch.inf, neginf=-torch.inf))
            upper = torch.minimum(upper, (high + up).nan_to_num(nan=torch.inf, posinf=torch.inf))
            for b, row in enumerate(rows):
                rounding = Cause(torch.eye(width, dtype=torch.float64), slack[b], math.inf)
                least = torch.maximum(row.high, -row.low)
                remainder = (Cause(rounding.matrix, least, math.inf),)
                causes.append((*(remainder if row.causes is None else row.causes), rounding))
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

    def _most(self, slope: Tensor, b: int) -> Tensor:
        """The most that slope (p - x) can be, for each row.

        In a box and an l2 ball by the dual: v radius^2 / 2 + sum_i max_d [slope_i d - v d^2 / 2]
        for any v >= 0, d within pixel i's ends; the least over a few v, the last nearly optimal.
        """
        radius, ends = self.radius[b], self.states[0]
        if not self.box or float(radius) == 0:
            size = _norm(slope) if self.norm == "l2" else slope.abs().sum(1)
            return size * radius * UP
        low, high = ends.low[b].flatten(), ends.high[b].flatten()
        greatest = torch.maximum(slope * low, slope * high).sum(1)
        if self.norm == "linf":
            return greatest * UP
        open_ = slope * torch.where(slope > 0, high > 0, low < 0)
        price = open_.norm(dim=1) / radius
        for _ in range(_PRICES):
            # 1e-300: a price of 0 lets every pixel go to its end, whatever it is divided by
            step = (slope / price.clamp_min(1e-300)[:, None]).clamp(low, high)
            gain = (step * (slope - price[:, None] * step / 2)).sum(1)
            greatest = torch.minimum(greatest, price * radius.square() / 2 + gain)
            at_end = (step == low) | (step == high)
            left = (radius.square() - (step * at_end).square().sum(1)).clamp_min(1e-300)
            price = (slope * ~at_end).norm(dim=1) / left.sqrt()
        return greatest * UP

    def _backward(self, node: int, wanted: dict[int, Tensor]) -> dict[int, Rows]:
        """The rows of some features of a node, by input: f = v + slope (p - x) + remainder.

        The rows of all inputs go back together, in chunks that fit the memory.
        """
        shape = self.states[node].value.shape[1:]
        widest = max(state.value[0].numel() for state in self.states[: node + 1])
        lines = {n: line for n, line in self.lines.items() if n <= node}
        loose = {b: {n: line.loose(b) for n, line in lines.items()} for b in wanted}
        # the causes of all inputs together must fit, else each coordinate's bound has to do
        size = sum(len(f) * sum(map(len, loose[b].values())) for b, f in wanted.items())
        keep = 8 * size <= self.memory
        owners = [torch.full((len(f),), b) for b, f in wanted.items()]
        owner = torch.cat(owners) if owners else torch.zeros(0, dtype=torch.long)
        features = torch.cat(list(wanted.values())) if owners else owner
        parts: dict[int, list[Rows]] = {b: [] for b in wanted}
        # four arrays of the widest node are alive at a time
        count = max(1, self.memory // (8 * 4 * widest))
        for rows_of_part, columns in zip(owner.split(count), features.split(count), strict=True):
            for b, rows in self._pull(node, rows_of_part, columns, shape, loose if keep else None):
                parts[b].append(rows)
        return {b: Rows.joined(result or [self._no_rows()]) for b, result in parts.items()}

    def _no_rows(self) -> Rows:
        none = torch.zeros(0, dtype=torch.float64)
        width = self.states[0].value[0].numel()
        return Rows(none.long(), none.view(0, 1).expand(0, width), none, none, ())

    def _pull(
        self,
        node: int,
        owner: Tensor,
        features: Tensor,
        shape: Sequence[int],
        loose: dict[int, dict[int, Tensor]] | None,
    ) -> list[tuple[int, Rows]]:
        """One chunk of rows, back to the input; their owners are in order."""
        if not len(owner):
            return []
        groups = [(b, (owner == b).nonzero()[:, 0]) for b in owner.unique().tolist()]
        cuts = [(b, slice(int(rows[0]), int(rows[-1]) + 1)) for b, rows in groups]
        pending: dict[int, Window | Tensor] = {node: one_hot(features, shape)}
        low, high = torch.zeros(2, len(owner), dtype=torch.float64)
        causes: dict[int, list[Cause]] = {b: [] for b, _ in cuts}
        for n in range(node, 0, -1):
            if n not in pending:
                continue
            row, step = pending.pop(n), self.steps[n - 1]
            line = self.lines.get(n)
            if line is not None:
                flat = dense(row).flatten(1)
                for b, cut in cuts:
                    # only what the lines leave out counts, in the norm above all
                    columns = line.loose(b) if loose is None else loose[b][n]
                    part = flat[cut][:, columns]
                    middle = _times(part, line.middle[b, columns])
                    half = _times(part.abs(), line.half[b, columns]) * UP
                    total = _times(_norm(part), line.total[b]) * UP
                    low[cut] += torch.maximum(middle - half, -total)
                    high[cut] += torch.minimum(middle + half, total)
                    if loose is not None and len(columns):
                        greatest = line.most(b)[columns]
                        causes[b].append(Cause(part, greatest, float(line.total[b])))
            for parent, back in step.pull(row, owner, line):
                other = pending.get(parent)
                pending[parent] = back if other is None else dense(other) + dense(back)
        slope = dense(pending[0]).flatten(1) if 0 in pending else None
        if slope is None:
            slope = torch.zeros(len(owner), self.states[0].value[0].numel(), dtype=torch.float64)
        return [
            (
                b,
                Rows(
                    features[cut],
                    slope[cut],
                    low[cut],
                    high[cut],
                    None if loose is None else tuple(causes[b]),
                ),
            )
            for b, cut in cuts
        ]


def _norm(rows: Tensor) -> Tensor:
    """The l2 norm of each row, without the underflow of tiny squares."""
    largest = rows.abs().amax(1).clamp_min(1e-300) if rows.shape[1] else rows.new_ones(len(rows))
    return (rows / largest[:, None]).norm(dim=1) * largest


def _times(rows: Tensor, bounds: Tensor) -> Tensor:
    """rows @ bounds, where an infinite bound on what a row does not read is nothing."""
    if bounds.ndim == 0:
        return torch.where(rows == 0, 0.0, rows * bounds)
    if bool(bounds.isfinite().all()):
        return rows @ bounds
    return torch.where(rows == 0, 0.0, rows * bounds).sum(-1)
