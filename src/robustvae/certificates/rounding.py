"""How far a network's output moves because it runs in float32: a forward bound, not a measurement.

With u the unit roundoff, gamma_k = k u / (1 - k u), h the activations at the center in float64, rad
how far those at another point of the ball lie from them, and e how far computed ones are from
exact ones, a layer W h + b with n terms a feature gives

    e <- ||W|| e + gamma_n || |W||h| + |b| || + gamma_n || |W| || (rad + e) + underflow,

and an activation with slopes up to L and k units in the last place e <- L e + k u (|h| + ...). It
holds for any order of the sums. Where the absolute values that are summed may together reach half
of the largest number of the type, e is infinite: a partial sum might overflow. Products and sums
are those of IEEE arithmetic, fused or not, with its smallest numbers: TF32, bfloat16, numbers
flushed to zero, and convolutions by Winograd or Fourier transforms are not.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from robustvae.certificates.propagation.graph import Add, Graph
from robustvae.certificates.propagation.operator import Curve, Operator, Shape, operator_of
from robustvae.certificates.propagation.steps import LinearStep, Step, SumStep
from robustvae.errors import UnsupportedError

_UP = 1 + 1e-9  # over the float64 arithmetic of the bound itself, which has a few hundred steps
_ROUNDS = 12  # of the power iteration; Collatz and Wielandt's bound holds after any number

UNITS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
"""Unit roundoff of the floating types that are covered."""

LARGEST = {torch.float32: 2.0**127, torch.float64: 2.0**1023}
"""Half of the largest number of each: sums whose terms together stay below overflow in no order."""

SMALLEST = {torch.float32: 2.0**-149, torch.float64: 5e-324}
"""Smallest positive number of each, which an operation that underflows may lose."""


def unit_of(dtype: torch.dtype, device: torch.device) -> float:
    """The unit roundoff in which sums of products are formed.

    Raises:
        UnsupportedError: Another type, settings under which float32 is multiplied in less, or
            under which the smallest numbers become 0.

    Examples:
        >>> import torch
        >>> from robustvae.certificates.rounding import unit_of
        >>> unit_of(torch.float32, torch.device("cpu")) == 2.0**-24
        True
    """
    if dtype not in UNITS:
        raise UnsupportedError(
            f"a rounding bound wants a model in float32 or float64, got {dtype}; use vae.double()"
        )
    if dtype == torch.float32 and _are_products_reduced(device):
        raise UnsupportedError(
            "a rounding bound wants float32 products, got TF32 or bfloat16 ones allowed; use "
            "torch.set_float32_matmul_precision('highest') and "
            "torch.backends.cudnn.allow_tf32 = False, or fp32_precision = 'ieee' where that was set"
        )
    if not bool(torch.tensor([SMALLEST[dtype]], dtype=dtype).mul(1)):
        raise UnsupportedError(
            "a rounding bound wants the smallest numbers kept, got a process that flushes them to "
            "0; use torch.set_flush_denormal(False)"
        )
    return UNITS[dtype]


def _are_products_reduced(device: torch.device) -> bool:
    """Whether torch may multiply float32 in less, by its older settings or its newer ones."""
    backends: Any = torch.backends
    if os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT").upper() != "STRICT":
        return True
    is_cuda = device.type == "cuda"
    owners = [backends.cuda, backends.cudnn] if is_cuda else [backends.mkldnn]
    try:
        reduction = torch.get_float32_matmul_precision() != "highest"
        if is_cuda:
            reduction |= backends.cuda.matmul.allow_tf32 or backends.cudnn.allow_tf32
    except RuntimeError:  # torch's word for a newer setting that the older ones cannot tell
        reduction = False
    settings = [getattr(owner, part, None) for owner in owners for part in ("matmul", "conv")]
    values = {getattr(setting, "fp32_precision", "none") for setting in settings}
    return bool(reduction) or not values <= {"none", "ieee"}


@final
@dataclass(frozen=True, eq=False)
class Rounded:
    """Features of a network over balls, and what rounding did to them.

    Attributes:
        value: At the centers, (B, ...), float64.
        rad: How far the exact ones at other points are from them, in l2, (..., B).
        error: How far computed ones are from exact ones, in l2, (..., B).
    """

    value: Tensor
    rad: Tensor
    error: Tensor


@final
@dataclass(frozen=True, eq=False)
class Arithmetic:
    """A floating type, how sums are formed in it, and the norms of the layers of one model.

    Attributes:
        dtype: torch.float32 or torch.float64.
        lanes: In how many partial sums at least every sum of products is formed; 1 for any order.
    """

    dtype: torch.dtype
    lanes: int = 1
    norms: dict[tuple[int, Shape], tuple[float, float]] = field(default_factory=dict, repr=False)
    """Of layers met before, by identity: made for one model that nobody changes meanwhile."""

    @property
    def unit(self) -> float:
        """The unit roundoff."""
        return UNITS[self.dtype]

    @property
    def smallest(self) -> float:
        """The smallest positive number."""
        return SMALLEST[self.dtype]

    def finite(self, error: Tensor, size: Tensor) -> Tensor:
        """An error where no sum can overflow, infinity where terms of that size together may."""
        return torch.where(size < LARGEST[self.dtype], error, math.inf)

    def gamma(self, terms: int) -> float:
        """Relative error of a sum of products of that many terms."""
        depth = min(terms, math.ceil(terms / self.lanes) + self.lanes)
        return depth * self.unit / (1 - depth * self.unit)


@torch.no_grad()
def forward_error(
    network: nn.Module, x: Tensor, rad: Tensor, error: Tensor, arithmetic: Arithmetic
) -> Rounded:
    """A bound on the rounding error of a network's output, for every point of a ball.

    Args:
        network: Layers that have an operator, in evaluation mode; `Sequential`, `Add` and `Graph`
            with one output.
        x: Centers, (B, ...).
        rad: Radius of each ball in l2, (B,); or of several balls about each center, (K, B).
        error: How far the input itself is off, in l2, of the same shape.
        arithmetic: In which it runs.

    Returns:
        The output at the centers and the bounds, each of the shape of `rad`.

    Raises:
        UnsupportedError: A layer whose rounding is not known, by name.

    References:
        Higham, 2002, sections 3.1 and 4.2; docs/theory.md, "Floating point".

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from robustvae.certificates.rounding import Arithmetic, forward_error
        >>> net, x = nn.Linear(100, 50), torch.rand(3, 100)
        >>> zero = torch.zeros(3)
        >>> bound = forward_error(net, x, zero, zero, Arithmetic(torch.float32)).error
        >>> seen = (net(x).double() - net.double()(x.double())).norm(dim=1)
        >>> bool((seen <= bound).all())
        True
    """
    start = Rounded(x.to("cpu", torch.float64), rad.double(), error.double())
    return _through(network, start, arithmetic)


def _through(network: nn.Module, state: Rounded, arithmetic: Arithmetic) -> Rounded:
    if type(network) is nn.Sequential:
        for layer in network:
            state = _through(layer, state, arithmetic)
        return state
    if type(network) is Add:
        return _sum(
            [_through(branch, state, arithmetic) for branch in network.branches], arithmetic
        )
    if type(network) is Graph:
        (end,) = network.walk(
            state,
            lambda layer, reads: (
                _through(layer, reads[0], arithmetic)
                if len(reads) == 1
                else _meet(layer, reads, arithmetic)
            ),
        )
        return end
    return _layer(operator_of(network), state, arithmetic)


def _sum(parts: list[Rounded], arithmetic: Arithmetic) -> Rounded:
    value = sum((part.value for part in parts[1:]), parts[0].value)
    sizes = sum((part.value.abs() for part in parts[1:]), parts[0].value.abs())
    rad = torch.stack([part.rad for part in parts]).sum(0)
    error = torch.stack([part.error for part in parts]).sum(0)
    size = _norm(sizes) + rad + error
    error = arithmetic.finite(error + arithmetic.gamma(len(parts) - 1) * size, size)
    return Rounded(value, rad * _UP, error * _UP)


def _meet(layer: nn.Module, reads: tuple[Rounded, ...], arithmetic: Arithmetic) -> Rounded:
    operator = operator_of(layer)
    steps = _Steps([tuple(part.value.shape[1:]) for part in reads])
    operator.build(steps, tuple(range(len(reads))))
    (step,) = steps.steps
    if isinstance(step, SumStep):
        return _sum(list(reads), arithmetic)
    value = step.value([part.value for part in reads])
    rad, error = (
        torch.stack([getattr(part, name) for part in reads]).norm(dim=0) * _UP
        for name in ("rad", "error")
    )
    return Rounded(value, rad, error)


def _layer(operator: Operator, state: Rounded, arithmetic: Arithmetic) -> Rounded:
    shape = tuple(state.value.shape[1:])
    steps = _Steps([shape])
    end = operator.build(steps, (0,))
    values = [state.value]
    for step in steps.steps:
        values.append(step.value([values[parent] for parent in step.parents]))
    value, terms = values[end], operator.roundings(shape)
    key = (id(operator.layer), shape)
    if key not in arithmetic.norms:
        of_sizes = 0.0
        if terms and not isinstance(operator, Curve):
            (linear,) = steps.steps
            assert isinstance(linear, LinearStep)
            of_sizes = sizes_norm(linear, shape)
        arithmetic.norms[key] = (operator.lipschitz(shape), of_sizes)
    constant, of_sizes = arithmetic.norms[key]
    rad, error = constant * state.rad, constant * state.error
    if terms:
        spread = state.rad + state.error
        if isinstance(operator, Curve):
            # torch may form x times a gate: the error is relative to the larger of x and phi(x)
            size = _norm(state.value.abs() + value.abs()) + (1 + constant) * spread
            error = error + terms * arithmetic.unit * size
        else:
            (linear,) = steps.steps
            assert isinstance(linear, LinearStep)
            bias = torch.zeros(()) if linear.bias is None else linear.bias.abs()
            size = _norm(linear.apply(state.value.abs(), "sizes") + bias)
            size = size + of_sizes * spread
            error = error + arithmetic.gamma(terms) * size
        # every one of the operations may underflow, in each feature
        error = error + terms * math.sqrt(value[0].numel()) * arithmetic.smallest
        error = arithmetic.finite(error, size)
    return Rounded(value, rad * _UP, error * _UP)


def sizes_norm(step: LinearStep, shape: tuple[int, ...]) -> float:
    """An upper bound on the l2 norm of the matrix of absolute values, |W|.

    For a matrix A >= 0 and any v > 0, ||A||^2 <= max_i (A'A v)_i / v_i (Collatz and Wielandt); a
    few power steps make v nearly the best.
    """

    def forward(x: Tensor) -> Tensor:
        return step.apply(x, "sizes")

    v = torch.ones(1, *shape, dtype=torch.float64)
    ratio = torch.tensor(math.inf, dtype=torch.float64)
    for _ in range(_ROUNDS):
        image, back, *_ = torch.func.vjp(forward, v)
        (again,) = back(image)
        ratio = torch.minimum(ratio, (again / v).max())
        # kept above 0, where a feature that nothing reads would end
        v = again / again.max().clamp_min(1e-300) + 1e-6
    return float(ratio.sqrt()) * _UP


class _Steps:
    """Takes the steps of one layer."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        self.shapes, self.steps = shapes, list[Step]()

    def shape(self, node: int) -> tuple[int, ...]:
        """Of a node."""
        return self.shapes[node]

    def append(self, step: Step, shape: tuple[int, ...]) -> int:
        """One more."""
        self.shapes.append(shape)
        self.steps.append(step)
        return len(self.shapes) - 1


def _norm(value: Tensor) -> Tensor:
    norms: Any = value.flatten(1).norm(dim=1)
    result: Tensor = norms * _UP
    return result
