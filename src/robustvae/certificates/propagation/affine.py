"""What the affine operators share: steps made of weights, and of one matrix an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from robustvae.certificates.propagation.steps import LinearStep
from robustvae.errors import NonFiniteError


def ways(weight: Tensor) -> dict[str, Tensor]:
    """A weight as it is, its entries' sizes, and their squares, float64 on the CPU.

    Raises:
        NonFiniteError: A NaN or an infinity in it.
    """
    weight = weight.detach().to("cpu", torch.float64)
    if not bool(weight.isfinite().all()):
        raise NonFiniteError("weights must be finite, got a NaN or an infinity")
    return {"plain": weight, "sizes": weight.abs(), "squares": weight.square()}


def double(bias: Tensor | None) -> Tensor | None:
    """A bias in float64 on the CPU.

    Raises:
        NonFiniteError: A NaN or an infinity in it.
    """
    return None if bias is None else ways(bias)["plain"]


def dense_step(weight: Tensor, bias: Tensor | None, node: int, shape: Sequence[int]) -> LinearStep:
    """A matrix on the last axis."""
    by = ways(weight)
    return LinearStep(
        (node,),
        lambda x, way: functional.linear(x, by[way]),
        lambda y: y @ by["plain"],
        double(bias),
        sum(weight.shape),  # roundings of a product with W, or with its transpose
        tuple(shape),
    )


def scaling_step(
    factor: Tensor, bias: Tensor | None, node: int, shape: Sequence[int]
) -> LinearStep:
    """Features times a factor, one for all or one each."""
    by = ways(factor)

    def transpose(y: Tensor) -> Tensor:
        return y * by["plain"]

    # a factor of every pixel cannot follow a window
    window = None
    if len(shape) == 3 and (factor.ndim == 0 or tuple(factor.shape[1:]) == (1, 1)):
        window = (transpose, (1, 1), (0, 0))
    return LinearStep(
        # one product and one sum; 16 roundings are more than any dtype makes of them
        (node,),
        lambda x, way: x * by[way],
        transpose,
        bias,
        16,
        tuple(shape),
        window=window,
    )


def moving_step(
    apply: Callable[[Tensor], Tensor],
    transpose: Callable[[Tensor], Tensor],
    node: int,
    shape: Sequence[int],
) -> LinearStep:
    """Features in another order, or some of them."""
    return LinearStep((node,), lambda x, _: apply(x), transpose, None, 0, tuple(shape), moves=True)


def axes_step(
    matrices: Sequence[Tensor], bias: Tensor | None, node: int, shape: Sequence[int]
) -> LinearStep:
    """One matrix, (m, n), for each of the last axes."""
    by = [ways(matrix) for matrix in matrices]

    def apply(x: Tensor, way: str) -> Tensor:
        for k, matrix in enumerate(reversed(by)):
            x = (x.movedim(-1 - k, -1) @ matrix[way].mT).movedim(-1, -1 - k)
        return x

    def transpose(y: Tensor) -> Tensor:
        for k, matrix in enumerate(reversed(by)):
            y = (y.movedim(-1 - k, -1) @ matrix["plain"]).movedim(-1, -1 - k)
        return y

    terms = sum(sum(matrix.shape) for matrix in matrices)
    return LinearStep((node,), apply, transpose, bias, terms, tuple(shape))


def pick_step(
    index: Tensor, coefficients: Tensor, node: int, shape: Sequence[int], out: Sequence[int]
) -> LinearStep:
    """Each feature a sum of few: out_j = sum_k coefficients[k, j] in[index[k, j]].

    Args:
        index: Numbers of flat features, (K, n).
        coefficients: (K, n).
        node: That it reads.
        shape: Of the features read.
        out: Of those made.
    """
    by, size = ways(coefficients), math.prod(shape)

    def apply(x: Tensor, way: str) -> Tensor:
        flat, weight = x.flatten(1), by[way]
        total = flat[:, index[0]] * weight[0]
        for k in range(1, len(index)):
            total = total + flat[:, index[k]] * weight[k]
        return total.unflatten(1, tuple(out))

    def transpose(y: Tensor) -> Tensor:
        flat = y.flatten(1)
        total = flat.new_zeros(len(flat), size)
        for k in range(len(index)):
            total.index_add_(1, index[k], flat * by["plain"][k])
        return total.unflatten(1, tuple(shape))

    # forwards K products, backwards as many as one feature is read: at most all
    most_read = int(torch.bincount(index.flatten(), minlength=1).max()) if index.numel() else 0
    return LinearStep((node,), apply, transpose, None, len(index) + most_read, tuple(shape))
