"""Networks as graphs of known layers: sums of branches, concatenations, and what reads what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from robustvae import gate
from robustvae.errors import check_count

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
        # a copy for each: what one does in place must not reach the others
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
class Concatenate(nn.Module):
    """Several features side by side, along the channels: what meets in a `Graph`.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.propagation.graph import Concatenate
        >>> Concatenate()(torch.zeros(1, 2), torch.ones(1, 1))
        tensor([[0., 0., 1.]])
    """

    def forward(self, *features: Tensor) -> Tensor:
        """(B, n_i, ...) to (B, sum n_i, ...)."""
        return torch.cat(features, 1)  # the channels: the only axis that bounds can follow


@final
class Affine(nn.Module):
    """factor * x + shift, by numbers.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.propagation.graph import Affine
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
class Exponential(nn.Module):
    """exp(x): what makes spreads of their logarithms; bounds pass it only there.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.propagation.graph import Exponential
        >>> Exponential()(torch.zeros(1))
        tensor([1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features of any shape."""
        return x.exp()


@final
class Constant(nn.Module):
    """One number in the place of every feature: what makes a constant spread.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.propagation.graph import Constant
        >>> Constant(0.5)(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """

    def __init__(self, value: float) -> None:
        """Keep the number."""
        super().__init__()
        self.value = float(value)

    def forward(self, x: Tensor) -> Tensor:
        """Features of any shape."""
        return torch.full_like(x, self.value)


@final
class Part(nn.Module):
    """Features, or channels, from `start` up to `stop`.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.propagation.graph import Part
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
        >>> from robustvae.certificates.propagation.graph import Graph, Sum
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
        return self.leading_to(self.ends[end])

    def leading_to(self, *ends: int) -> Graph:
        """What leads to these values, and nothing else.

        Args:
            ends: Numbers of the values.
        """
        needed, waiting = {0}, list(ends)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += self.reads[node - 1]
        number = {node: k for k, node in enumerate(sorted(needed))}
        rows = [node - 1 for node in sorted(needed) if node > 0]
        return Graph(
            [self.layers[row] for row in rows],
            [tuple(number[read] for read in self.reads[row]) for row in rows],
            tuple(number[end] for end in ends),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every output."""
        return self.walk(x, lambda layer, features: layer(*features))


gate.know(nn.Sequential, nn.ModuleList, Add, Graph)
