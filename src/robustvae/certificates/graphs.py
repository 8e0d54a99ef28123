"""Networks as graphs of known layers: sums of branches, and what a trace of a module computes."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustvae.errors import UnsupportedError, check_count
from robustvae.models.lipschitz import GroupSort, MaxMin, Scale
from robustvae.models.orthogonal import MoveChannels

T = TypeVar("T")


@final
class Add(nn.Module):
    """The sum of what its branches make of the same features; `Add(nn.Identity(), f)` is x + f(x).

    Args:
        branches: Networks with outputs of one shape.

    Examples:
        >>> import torch
        >>> from robustvae.certificates import Add
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
        # a copy for each: what one does in place is no business of the others
        first, *others = (branch(x.clone()) for branch in self.branches)
        return sum(others, first)


@final
class Sum(nn.Module):
    """The sum of several features of one shape: what meets in a `Graph`."""

    def forward(self, *features: Tensor) -> Tensor:
        """Their sum."""
        first, *others = features
        return sum(others, first)


@final
class Affine(nn.Module):
    """factor * x + shift, by numbers.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.graphs import Affine
        >>> Affine(2.0, -1.0)(torch.tensor([0.0, 1.0]))
        tensor([-1.,  1.])
    """

    def __init__(self, factor: float, shift: float) -> None:
        """Keep the numbers."""
        super().__init__()
        self.factor, self.shift = float(factor), float(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Features of any shape."""
        return self.factor * x + self.shift


@final
class Part(nn.Module):
    """Features, or channels, from `start` up to `stop`.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.graphs import Part
        >>> Part(1, 3)(torch.arange(4.0)[None])
        tensor([[1., 2.]])
    """

    def __init__(self, start: int, stop: int) -> None:
        """Keep the ends."""
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, ...) to (B, stop - start, ...)."""
        return x[:, self.start : self.stop]


@final
class Graph(nn.Module):
    """Layers in order, what each reads, and what comes out.

    Value 0 is the input, value k what layer k - 1 makes of the values it reads.

    Args:
        layers: The layers.
        reads: For each layer, the numbers of the values it reads.
        ends: Numbers of the values that are the output.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.graphs import Graph, Sum
        >>> residual = Graph([torch.nn.ReLU(), Sum()], reads=[(0,), (0, 1)], ends=(2,))
        >>> residual(torch.tensor([-1.0, 2.0]))
        (tensor([-1.,  4.]),)
    """

    def __init__(
        self, layers: Sequence[nn.Module], reads: Sequence[tuple[int, ...]], ends: tuple[int, ...]
    ) -> None:
        """Keep the graph."""
        super().__init__()
        self.layers, self.reads, self.ends = nn.ModuleList(layers), tuple(reads), ends

    def walk(self, start: T, step: Callable[[nn.Module, tuple[T, ...]], T]) -> tuple[T, ...]:
        """What comes out where `step` tells what a layer makes of what it reads."""
        values = [start]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            values.append(step(layer, tuple(values[k] for k in reads)))
        return tuple(values[end] for end in self.ends)

    def only(self, end: int) -> Graph:
        """The graph with one of its outputs alone."""
        return Graph(list(self.layers), self.reads, (self.ends[end],))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every output."""
        return self.walk(x, lambda layer, given: layer(*given))


def out_of_place(layer: nn.Module) -> nn.Module:
    """The layer, or a copy of it that leaves its input alone."""
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        object.__setattr__(layer, "inplace", False)
    return layer


def traced(function: Callable[[Tensor], Any], shape: Sequence[int]) -> Graph:
    """The graph of a module, or of a method of one, in evaluation mode and float64.

    Known are modules of PyTorch and of this library, `Sequential` of them, and as functions or
    methods: activations, `flatten`, `view`, `reshape`, `chunk`, `split`, slices of the channels,
    and + - * / with numbers and sums of features. What the graph computes is compared with what
    the module does; which layers bounds are known for is the concern of who reads the graph.

    Args:
        function: The module or method, of one tensor.
        shape: Of one input, without the batch.

    Raises:
        UnsupportedError: No module, one that cannot be traced, or an operation that is not known,
            by name.

    Examples:
        >>> from torch import nn
        >>> from robustvae.certificates.graphs import traced
        >>> class Residual(nn.Module):
        ...     def forward(self, x):
        ...         return x + x.relu()
        >>> [type(layer).__name__ for layer in traced(Residual(), (2,)).layers]
        ['ReLU', 'Sum']
    """
    name = "forward" if isinstance(function, nn.Module) else getattr(function, "__name__", "")
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise UnsupportedError(
            f"{name or type(function).__name__} is no module, nor a method of one"
        )
    what = type(owner).__name__
    if owner._forward_hooks or owner._forward_pre_hooks:
        raise UnsupportedError(f"a {what} with a forward hook is not covered")
    tracer = _Tracer()
    tracer.traced_func_name = name
    size = 2 * math.prod(shape)
    probe = torch.linspace(0, 1, size, dtype=torch.float64).view(2, *shape)
    try:
        found = _Translation(owner, probe).graph(tracer.trace(owner))
        probes = (probe, probe[:1], 1 - probe.flip(0))
        agrees = all(_agree(function, found, part) for part in probes)
    except UnsupportedError:
        raise
    except Exception as error:  # whatever a user's code does with a placeholder
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedError(f"{what} cannot be traced: {reason}") from None
    if not agrees:
        raise UnsupportedError(f"{what} does not compute what its trace shows")
    return found


@torch.no_grad()
def _agree(function: Callable[[Tensor], Any], found: Graph, x: Tensor) -> bool:
    made, again = function(x.clone()), found(x)
    made = tuple(made) if isinstance(made, tuple | list) else (made,)
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-12)
        for one, other in zip(made, again, strict=True)
    )


class _Tracer(fx.Tracer):
    """Takes this library's layers whole, as it does PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = (GroupSort, MaxMin, MoveChannels, Scale)
        return isinstance(m, own) or super().is_leaf_module(m, module_qualified_name)


_BY_NUMBER: dict[Any, Callable[[float, bool], tuple[float, float]]] = {
    operator.add: lambda number, _: (1.0, number),
    operator.mul: lambda number, _: (number, 0.0),
    operator.sub: lambda number, first: (-1.0, number) if first else (1.0, -number),
}
_SAME: dict[Any, Any] = {
    torch.add: operator.add,
    torch.mul: operator.mul,
    torch.sub: operator.sub,
    torch.div: operator.truediv,
    torch.relu: functional.relu,
    torch.tanh: functional.tanh,
    torch.sigmoid: functional.sigmoid,
}
_METHODS: dict[str, Any] = {
    "add": operator.add,
    "mul": operator.mul,
    "sub": operator.sub,
    "div": operator.truediv,
    "relu": functional.relu,
    "tanh": functional.tanh,
    "sigmoid": functional.sigmoid,
    "flatten": torch.flatten,
    "chunk": torch.chunk,
    "split": torch.split,
    "view": torch.reshape,
    "reshape": torch.reshape,
}
_CURVES: dict[Any, type[nn.Module]] = {
    functional.relu: nn.ReLU,
    functional.leaky_relu: nn.LeakyReLU,
    functional.tanh: nn.Tanh,
    functional.sigmoid: nn.Sigmoid,
    functional.softplus: nn.Softplus,
}


_FRESH = (
    nn.Linear,
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.modules.batchnorm._BatchNorm,
)


class _Translation:
    """Goes through a trace with two images: `seen` holds what each value of the graph is there.

    A value of the trace is a number in `seen`, a list of such, or, where no features lead to it, a
    size or the like, `_Plain`.
    """

    def __init__(self, owner: nn.Module, probe: Tensor) -> None:
        self.owner, self.seen = owner, [probe]
        self.layers: list[nn.Module] = []
        self.reads: list[tuple[int, ...]] = []
        self.known: dict[fx.Node, Any] = {}

    def graph(self, trace: fx.Graph) -> Graph:
        """The whole of it."""
        for node in trace.nodes:
            if node.op == "placeholder":
                if self.known:
                    raise UnsupportedError("a network of more than one input")
                self.known[node] = 0
            elif node.op == "output":
                ends = self._given(node.args[0])
                if isinstance(ends, _Ref) and isinstance(ends.known, list):
                    ends = [_Ref(end) for end in ends.known]
                ends = ends if isinstance(ends, tuple | list) else (ends,)
                found = tuple(end.known for end in ends if isinstance(end, _Ref))
                if len(found) != len(ends):
                    raise UnsupportedError("a network that returns something else than tensors")
                return Graph(self.layers, self.reads, found)
            else:
                self.known[node] = self._step(node)
        raise AssertionError("a trace without an output")

    def _step(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            layer = self.owner.get_submodule(str(node.target))
            if len(node.args) != 1 or node.kwargs:
                raise UnsupportedError(f"a {type(layer).__name__} of more than one input")
            if "forward" in vars(layer):
                raise UnsupportedError(f"a {type(layer).__name__} with a forward of its own")
            if getattr(layer, "inplace", False) and not self._fresh(node.args[0]):
                raise UnsupportedError(
                    f"an in-place {type(layer).__name__} of features that may be read elsewhere too"
                )
            return self._append(out_of_place(layer), self._value(node.args[0], node))
        if node.op == "get_attr":
            raise UnsupportedError(f"arithmetic with the tensor {node.target!r}")
        first, *others = [self._given(part) for part in node.args]
        options = {key: self._given(part) for key, part in node.kwargs.items()}
        if options.pop("inplace", False):
            raise UnsupportedError(f"{_named(node)} in place")
        if node.op == "call_method":
            if node.target == "contiguous":
                return self._value(node.args[0], node)
            if node.target == "size":
                return _Plain(self.seen[self._value(node.args[0], node)].size(*others))
            call = _METHODS.get(str(node.target))
        else:
            call = _SAME.get(node.target, node.target)
        if call is getattr:
            return _Plain(getattr(self.seen[self._value(node.args[0], node)], others[0]))
        if call is operator.getitem:
            return self._item(node, first, others[0])
        if call in (operator.add, operator.sub, operator.mul, operator.truediv) and not options:
            return self._arithmetic(node, call, first, others[0])
        read = self._value(node.args[0], node)
        if call in _CURVES:
            layer = _CURVES[call](*others, **options)
            if getattr(layer, "inplace", False):
                raise UnsupportedError(f"{_named(node)} in place")
            return self._append(layer, read)
        if call is torch.flatten and (*others, *options.values()) in ((1,), (1, -1)):
            return self._append(nn.Flatten(), read)
        if call is torch.reshape and not options:
            sizes = others[0] if isinstance(others[0], tuple | list) else others
            return self._reshaped(read, tuple(sizes[1:]))
        if call in (torch.chunk, torch.split):
            return self._pieces(call(self.seen[read], *others, **options), read)
        raise _unknown(node)

    def _fresh(self, node: Any) -> bool:
        """Whether nothing else reads a value, nor shares its memory."""
        made = node.op == "call_module" and self.owner.get_submodule(str(node.target))
        return len(node.users) == 1 and isinstance(made, _FRESH)

    def _append(self, layer: nn.Module, *reads: int) -> int:
        with torch.no_grad():
            self.seen.append(layer(*(self.seen[k] for k in reads)))
        self.layers.append(layer)
        self.reads.append(reads)
        return len(self.layers)

    def _given(self, part: Any) -> Any:
        """An argument: plain where it is, else its value's number wrapped as a `_Ref`."""
        if isinstance(part, fx.Node):
            known = self.known[part]
            return known.value if isinstance(known, _Plain) else _Ref(known)
        if isinstance(part, tuple | list):
            return tuple(self._given(inner) for inner in part)
        if isinstance(part, slice):
            return slice(*(self._given(end) for end in (part.start, part.stop, part.step)))
        return part

    def _value(self, part: Any, node: fx.Node) -> int:
        known = self.known.get(part) if isinstance(part, fx.Node) else None
        if not isinstance(known, int):
            raise _unknown(node)
        return known

    def _item(self, node: fx.Node, first: Any, index: Any) -> Any:
        if not isinstance(first, _Ref):
            return _Plain(first[index])
        if isinstance(first.known, list):
            return first.known[index]
        match index:
            case (slice(start=None, stop=None, step=None), slice(step=None | 1) as channels):
                start, stop, _ = channels.indices(self.seen[first.known].shape[1])
                return self._append(Part(start, stop), first.known)
        raise _unknown(node)

    def _pieces(self, pieces: Sequence[Tensor], read: int) -> list[int]:
        found, start = [], 0
        for piece in pieces:
            stop = start + piece.shape[1]
            found.append(self._append(Part(start, stop), read))
            if self.seen[-1].shape != piece.shape:
                raise UnsupportedError("features divided along another axis than the channels")
            start = stop
        return found

    def _reshaped(self, read: int, sizes: tuple[int, ...]) -> int:
        flat = self._append(nn.Flatten(), read) if self.seen[read].ndim != 2 else read
        if sizes in ((-1,), (self.seen[flat].shape[1],)):
            return flat
        return self._append(nn.Unflatten(1, sizes), flat)

    def _arithmetic(self, node: fx.Node, call: Any, first: Any, second: Any) -> int:
        refs = [part.known for part in (first, second) if isinstance(part, _Ref)]
        if len(refs) == 2 and call in (operator.add, operator.sub):
            if call is operator.sub:
                refs[1] = self._append(Affine(-1.0, 0.0), refs[1])
            if self.seen[refs[0]].shape != self.seen[refs[1]].shape:
                raise UnsupportedError("a sum of features of several shapes")
            return self._append(Sum(), *refs)
        number = second if isinstance(first, _Ref) else first
        if len(refs) == 1 and isinstance(number, int | float):
            if call is operator.truediv and isinstance(first, _Ref):
                return self._append(Affine(1 / number, 0.0), refs[0])
            if call in _BY_NUMBER:
                return self._append(Affine(*_BY_NUMBER[call](number, first is number)), refs[0])
        raise _unknown(node)


class _Ref:
    """Stands for features among the arguments of a call."""

    def __init__(self, known: Any) -> None:
        self.known = known


class _Plain:
    """A size, or what else is no features."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _unknown(node: fx.Node) -> UnsupportedError:
    return UnsupportedError(f"no bounds are known for the operation {_named(node)!r}")


def _named(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
