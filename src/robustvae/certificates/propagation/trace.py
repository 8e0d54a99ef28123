"""The graph of a user's module, read from a trace of it."""

from __future__ import annotations

import copy
import hashlib
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robustvae import gate
from robustvae.arguments import checked
from robustvae.certificates.propagation.graph import (
    Affine,
    Concatenate,
    Constant,
    Exponential,
    Graph,
    Part,
    Sum,
)
from robustvae.certificates.propagation.operator import CALLS, OPERATORS, load
from robustvae.errors import RobustVAEError, UnsupportedError


def out_of_place(layer: nn.Module) -> nn.Module:
    """The layer, or a copy of it that leaves its input alone."""
    if getattr(layer, "inplace", False):
        layer = copy.copy(layer)
        object.__setattr__(layer, "inplace", False)
    return layer


@checked()
def traced(function: Callable[[Tensor], Any], shape: Sequence[int]) -> Graph:
    """The graph of a module, or of a method of one, in evaluation mode and float64.

    Known are modules that have an operator, `Sequential` of them, and as functions or methods:
    what these name as their `calls`, `flatten`, `view`, `reshape`, `chunk`, `split`, `cat`, slices
    of the channels, means over the pixels, and + - * / with numbers and sums of features. What the
    graph computes is compared with what the module does.

    Args:
        function: The module or method, of one tensor.
        shape: Of one input, without the batch.

    Raises:
        UnsupportedError: No module, one that cannot be traced, that the gate refuses, or whose
            state changes with its calls; an operation that is not known, by name.

    Examples:
        >>> from torch import nn
        >>> from robustvae.certificates.propagation.trace import traced
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
            f"{name or type(function).__name__} must be a module or a method of one; its layers "
            "cannot be read"
        )
    kind = type(owner).__name__
    load()
    # what holds for every call of this process first, then each layer by itself
    gate.admit_process()
    for part in owner.modules():
        gate.admit_call(part)
    tracer = _Tracer()
    tracer.traced_func_name = name
    size = 2 * math.prod(shape)
    # two images that differ everywhere, in float64: what the layers do, nearly without rounding
    probe = torch.linspace(0, 1, size, dtype=torch.float64).view(2, *shape)
    before = state_of(owner)  # a counter or a cache makes the next call another function
    try:
        with torch.random.fork_rng(devices=[]):  # a module that draws moves nobody's numbers
            trace = tracer.trace(owner)
            graph = _Translation(owner, probe).graph(trace)
            # one image and two, in another order, and far from [0, 1]
            probes = (probe, probe[:1], 1 - probe.flip(0), 100 * probe - 50)
            agrees = all(_agree(function, graph, part) for part in probes)
            choices = _hidden(function, fx.Interpreter(owner, graph=trace), probe)
    except RobustVAEError:
        raise
    except Exception as error:  # whatever a user's code does with a placeholder
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedError(f"{kind} cannot be traced: {reason}") from None
    if not agrees:
        raise UnsupportedError(f"{kind} does not compute what its trace shows")
    if choices:
        raise UnsupportedError(
            f"{kind} does not compute what its trace shows: it calls {min(choices)!r} only where "
            "it is not traced; use method='smoothing'"
        )
    if state_of(owner) != before:
        raise UnsupportedError(
            f"{kind} changes its own state when it is called, so that a trace does not speak for "
            "the next call"
        )
    return graph


def state_of(owner: nn.Module) -> list[tuple[str, str, Any]]:
    """What a call of a module, or its user, may change: attributes, and what tensors hold."""
    state: list[tuple[str, str, Any]] = []
    for path, part in owner.named_modules():
        for key, value in (*part._parameters.items(), *part._buffers.items(), *vars(part).items()):
            if key not in ("_parameters", "_buffers", "_modules"):
                state.append((path, key, _content(value)))
    return state


def _content(value: Any) -> Any:
    """What tells a value from another one: tensors by their numbers, others by what they print.

    A tensor's count of changes would not do: one who writes through `.data` leaves it as it is. An
    object without a text of its own prints its address.
    """
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        numbers = value.resolve_conj().resolve_neg().detach().cpu().contiguous()
        return id(value), hashlib.blake2b(
            numbers.flatten().view(torch.uint8).numpy().tobytes()
        ).digest()
    if type(value) in (list, tuple, set, frozenset):
        return tuple(map(_content, value))
    if type(value) is dict:
        return tuple((repr(key), _content(inner)) for key, inner in value.items())
    return repr(value)


class _Calls(TorchDispatchMode):
    """Counts torch's operations that are called within."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.counts[func.__name__.partition(".")[0].rstrip("_")] += 1
        return func(*args, **(kwargs or {}))


# what hands a tensor's numbers to Python, where no operation of torch is seen
_READS = frozenset(
    {"numpy", "tolist", "item", "data_ptr", "storage", "untyped_storage", "__array__", "__dlpack__"}
    | {"__bool__", "__float__", "__int__", "__index__", "__contains__"}
)


class _Reads(TorchFunctionMode):
    """Counts the calls within that read a tensor's numbers."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _READS:
            self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def _counted(function: Callable[[Tensor], Any], x: Tensor) -> Counter[str]:
    counts = Counter[str]()
    with _Reads(counts), _Calls(counts):
        function(x)
    return counts


def _hidden(function: Callable[[Tensor], Any], shown: fx.Interpreter, x: Tensor) -> set[str]:
    """Operations that a function does another number of times than its trace.

    One that no trace shows is a part of the function, whatever the probes see of it: it may be 0
    but for a few images.
    """
    found = set[str]()
    for mode in (torch.no_grad, torch.enable_grad):
        for part in (x, x[:1]):
            with mode():
                actual, traced = _counted(function, part.clone()), _counted(shown.run, part.clone())
            found |= {name for name in actual | traced if actual[name] != traced[name]}
    return found


def check_alike(
    function: nn.Module, twin: nn.Module, shape: Sequence[int], dtype: torch.dtype, device: Any
) -> None:
    """Raise where a module does other operations than its copy in float64 that is bounded.

    Args:
        function: What runs, in its own floating type.
        twin: Its copy.
        shape: Of one input, without the batch.
        dtype: Of the original.
        device: Of the original.

    Raises:
        UnsupportedError: A trace of its own, or operations that its trace does not show.
    """
    load()
    try:
        with torch.random.fork_rng(devices=[]):
            copied = _Tracer().trace(twin)
    except Exception:  # nothing is bounded then
        return
    kind = "the model as it runs"
    try:
        with torch.random.fork_rng(devices=[]):
            trace = _Tracer().trace(function)
            x = torch.linspace(0, 1, 2 * math.prod(shape), dtype=dtype, device=device)
            hidden = _hidden(function, fx.Interpreter(function, graph=trace), x.view(2, *shape))
    except Exception as error:  # whatever a user's code does with a placeholder
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedError(f"{kind} cannot be traced as its copy can: {reason}") from None
    if hidden or _steps(trace) != _steps(copied):
        what = f": it calls {min(hidden)!r} only where it is not traced" if hidden else ""
        raise UnsupportedError(
            f"{kind} does not compute what its float64 copy shows{what}; use method='smoothing'"
        )


def _steps(trace: fx.Graph) -> list[tuple[str, ...]]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in trace.nodes]


def _agree(function: Callable[[Tensor], Any], graph: Graph, x: Tensor) -> bool:
    """Whether the graph does what the function does, with and without gradients."""
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            result, again = function(x.clone()), graph(x)
        result = tuple(result) if isinstance(result, tuple | list) else (result,)
        for one, other in zip(result, again, strict=True):
            if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-9, atol=1e-12):
                return False
    return True


class _Tracer(fx.Tracer):
    """Takes every layer whole that has an operator, as it does PyTorch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, tuple(OPERATORS)) or super().is_leaf_module(m, module_qualified_name)


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
    torch.concat: torch.cat,
    torch.concatenate: torch.cat,
    "add": operator.add,
    "mul": operator.mul,
    "sub": operator.sub,
    "div": operator.truediv,
    "flatten": torch.flatten,
    "chunk": torch.chunk,
    "split": torch.split,
    "view": torch.reshape,
    "reshape": torch.reshape,
    "mean": torch.mean,
}
"""Functions and methods that do what another does."""

# What makes new memory: an activation in place on it disturbs nobody else.
_FRESH = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.GroupNorm,
    nn.LayerNorm,
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
        self.values: dict[fx.Node, Any] = {}

    def graph(self, trace: fx.Graph) -> Graph:
        """All of it."""
        for node in trace.nodes:
            if node.op == "placeholder":
                if self.values:
                    raise UnsupportedError("bounds want a network of one input, got several")
                self.values[node] = 0
            elif node.op == "output":
                ends = self._argument(node.args[0])
                if isinstance(ends, _Ref) and isinstance(ends.value, list):
                    ends = [_Ref(end) for end in ends.value]
                ends = ends if isinstance(ends, tuple | list) else (ends,)
                outputs = tuple(end.value for end in ends if isinstance(end, _Ref))
                if len(outputs) != len(ends):
                    raise UnsupportedError("a network must return tensors to be bounded")
                return Graph(self.layers, self.reads, outputs)
            else:
                self.values[node] = self._step(node)
        raise AssertionError("a trace without an output")  # torch.fx ends every trace with one

    def _step(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            return self._module(node)
        if node.op == "get_attr":
            raise UnsupportedError(
                f"no bounds are known for arithmetic with {node.target!r}: use method='smoothing'"
            )
        if not node.args:
            raise _unknown(node)
        first, *others = [self._argument(part) for part in node.args]
        options = {key: self._argument(part) for key, part in node.kwargs.items()}
        if options.pop("inplace", False):
            raise UnsupportedError(f"{_name(node)} in place may change what is read elsewhere")
        if node.op == "call_method":
            # the same numbers, elsewhere in memory or without a graph
            if node.target in ("contiguous", "clone", "detach"):
                return self._value(node.args[0], node)
            if node.target == "size":
                return _Plain(self.seen[self._value(node.args[0], node)].size(*others))
        call = _SAME.get(node.target, node.target)
        if call is getattr:
            return _Plain(getattr(self.seen[self._value(node.args[0], node)], others[0]))
        if call is operator.getitem:
            return self._item(node, first, others[0])
        if call is torch.cat:
            return self._joined(node, first, (*others, *options.values()))
        if call in (operator.add, operator.sub, operator.mul, operator.truediv) and not options:
            return self._arithmetic(node, call, first, others[0])
        read = self._value(node.args[0], node)
        if call in CALLS:
            layer = CALLS[call](*others, **options)
            if getattr(layer, "inplace", False):
                raise UnsupportedError(f"{_name(node)} in place may change what is read elsewhere")
            return self._append(layer.eval(), read)
        if call in (torch.exp, "exp") and not others and not options:
            return self._append(Exponential(), read)
        number = _constant(call, others, options)
        if number is not None:
            return self._append(Constant(number), read)
        if call is torch.flatten and (*others, *options.values()) in ((1,), (1, -1)):
            return self._append(nn.Flatten(), read)
        if call is torch.reshape and not options:
            sizes = others[0] if isinstance(others[0], tuple | list) else others
            return self._reshaped(read, tuple(sizes[1:]))
        if call is torch.mean:
            return self._averaged(node, read, others, options)
        if call in (torch.chunk, torch.split):
            return self._pieces(call(self.seen[read], *others, **options), read)
        raise _unknown(node)

    def _module(self, node: fx.Node) -> int:
        layer = self.owner.get_submodule(str(node.target))
        name = type(layer).__name__
        if len(node.args) != 1 or node.kwargs:
            raise UnsupportedError(
                f"a {name} must have one input to be bounded: use method='smoothing'"
            )
        gate.admit(layer)
        if getattr(layer, "inplace", False) and not self._is_fresh(node.args[0]):
            raise UnsupportedError(
                f"an in-place {name} of features that may be read elsewhere too; use inplace=False"
            )
        return self._append(out_of_place(layer), self._value(node.args[0], node))

    def _is_fresh(self, node: Any) -> bool:
        """Whether nothing else reads a value, nor shares its memory."""
        layer = node.op == "call_module" and self.owner.get_submodule(str(node.target))
        return len(node.users) == 1 and isinstance(layer, _FRESH)

    def _append(self, layer: nn.Module, *reads: int) -> int:
        with torch.no_grad():
            self.seen.append(layer(*(self.seen[k] for k in reads)))
        self.layers.append(layer)
        self.reads.append(reads)
        return len(self.layers)

    def _argument(self, part: Any) -> Any:
        """An argument: plain where it is, else its value's number wrapped as a `_Ref`."""
        if isinstance(part, fx.Node):
            value = self.values[part]
            return value.value if isinstance(value, _Plain) else _Ref(value)
        if isinstance(part, tuple | list):
            return tuple(self._argument(inner) for inner in part)
        if isinstance(part, slice):
            return slice(*(self._argument(end) for end in (part.start, part.stop, part.step)))
        return part

    def _value(self, part: Any, node: fx.Node) -> int:
        value = self.values.get(part) if isinstance(part, fx.Node) else None
        if not isinstance(value, int):
            raise _unknown(node)
        return value

    def _item(self, node: fx.Node, first: Any, index: Any) -> Any:
        if not isinstance(first, _Ref):
            return _Plain(first[index])
        if isinstance(first.value, list):
            return first.value[index]
        match index:
            case (slice(start=None, stop=None, step=None), slice(step=None | 1) as channels):
                start, stop, _ = channels.indices(self.seen[first.value].shape[1])
                return self._append(Part(start, stop), first.value)
        raise _unknown(node)

    def _pieces(self, pieces: Sequence[Tensor], read: int) -> list[int]:
        parts, start = [], 0
        for piece in pieces:
            stop = start + piece.shape[1]
            parts.append(self._append(Part(start, stop), read))
            if self.seen[-1].shape != piece.shape:
                raise UnsupportedError("features must be divided along the channels to be bounded")
            start = stop
        return parts

    def _joined(self, node: fx.Node, features: Any, axis: tuple[Any, ...]) -> int:
        refs = [part.value for part in features if isinstance(part, _Ref)]
        shapes = {self.seen[k].shape[2:] for k in refs if isinstance(k, int)}
        least = -self.seen[0].ndim if not refs else 1 - self.seen[refs[0]].ndim
        if len(refs) != len(features) or len(shapes) != 1 or axis not in ((1,), (least,)):
            raise _unknown(node)
        return self._append(Concatenate(), *refs)

    def _averaged(
        self, node: fx.Node, read: int, others: list[Any], options: dict[str, Any]
    ) -> int:
        """The mean over all pixels, as global pooling writes it."""
        arguments = dict(zip(("dim", "keepdim"), others, strict=False)) | options
        axes = arguments.get("dim")
        axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
        ndim = self.seen[read].ndim
        if ndim == 4 and sorted(axis % ndim for axis in axes) == [2, 3]:
            mean = self._append(nn.AdaptiveAvgPool2d(1), read)
            return mean if arguments.get("keepdim") else self._append(nn.Flatten(), mean)
        raise _unknown(node)

    def _reshaped(self, read: int, sizes: tuple[int, ...]) -> int:
        flat = self._append(nn.Flatten(), read) if self.seen[read].ndim != 2 else read
        if sizes in ((-1,), (self.seen[flat].shape[1],)):
            return flat
        return self._append(nn.Unflatten(1, sizes), flat)

    def _arithmetic(self, node: fx.Node, call: Any, first: Any, second: Any) -> int:
        refs = [part.value for part in (first, second) if isinstance(part, _Ref)]
        if len(refs) == 2 and call in (operator.add, operator.sub):
            if not all(isinstance(ref, int) for ref in refs):
                raise _unknown(node)
            if call is operator.sub:
                refs[1] = self._append(Affine(-1.0, 0.0), refs[1])
            if self.seen[refs[0]].shape != self.seen[refs[1]].shape:
                raise UnsupportedError("features must have one shape to be added")
            return self._append(Sum(), *refs)
        number = second if isinstance(first, _Ref) else first
        if len(refs) == 1 and isinstance(number, int | float):
            if call is operator.truediv and isinstance(first, _Ref) and number != 0:
                return self._append(Affine(1 / number, 0.0), refs[0])
            if call in _BY_NUMBER:
                return self._append(Affine(*_BY_NUMBER[call](number, first is number)), refs[0])
        raise _unknown(node)


def _constant(call: Any, others: list[Any], options: dict[str, Any]) -> float | None:
    """The number that a call puts into the place of every feature; None where it does not."""
    if call is torch.full_like:
        values = [*others, *options.values()]
        is_number = len(values) == 1 and isinstance(values[0], int | float)
        return float(values[0]) if is_number and set(options) <= {"fill_value"} else None
    if others or options:
        return None
    return {torch.ones_like: 1.0, torch.zeros_like: 0.0}.get(call)


class _Ref:
    """Stands for features among the arguments of a call."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Plain:
    """A size, or anything else but features."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _unknown(node: fx.Node) -> UnsupportedError:
    return UnsupportedError(f"no bounds are known for the operation {_name(node)!r}")


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
