"""Jacobians of batched maps, their products, and the top of their spectra.

Every map here takes (B, ...) to (B, ...) and treats each row alone, as a network does in
evaluation mode. D is the number of elements of one input row, k of one output row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import RangeError, ShapeError, check_choice, check_count
from robustvae.seeding import randn

Mode = Literal["auto", "reverse", "forward"]

ELEMENTS_IN_CACHE = 2**19  # of float64 copies of Jacobians that are decomposed at once


@checked()
def jacobian(
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    mode: Mode = "auto",
    batched: bool = False,
    chunk: int = 128,
) -> Tensor:
    """Jacobian of each row of a batched map, by k backward or D forward products.

    One evaluation of `f` serves all products of a chunk. A forward product goes through the
    graph of a backward one, so `f` must be differentiable twice for it.

    Args:
        f: Map from (B, ...) to (B, ...) that treats each row alone.
        x: Points, (B, ...), of floating type.
        mode: "reverse" makes one row of J at a time, "forward" one column; "auto" takes the fewer.
        batched: Make all rows (or columns) by one vectorized product: faster for linear layers,
            slower for convolutions, and k (or D) times the memory.
        chunk: Most rows of `x` at a time.

    Returns:
        Jacobians, (B, k, D), in units of output by input, without a graph.

    Raises:
        UnknownNameError: Any other `mode`.
        ShapeError: `f` does not keep the number of rows.
        RangeError: `chunk` is not positive.

    Examples:
        >>> import torch
        >>> from robustvae.jacobians import jacobian
        >>> jacobian(lambda x: x.square(), torch.tensor([[1.0, 2.0]]))
        tensor([[[2., 0.],
                 [0., 4.]]])
    """
    check_choice("mode", mode, ("auto", "reverse", "forward"))
    check_count(chunk, "chunk")
    return torch.cat([_jacobian(f, part, mode, batched) for part in x.split(chunk)])


@final
@dataclass(frozen=True)
class Products:
    """Products with the Jacobian at a batch of points, from one evaluation of the map.

    Attributes:
        value: The map's value, (B, k), without a graph.
        jvp: Tangents (B, D) to J v, (B, k).
        vjp: Cotangents (B, k) to J^T u, (B, D).
    """

    value: Tensor
    jvp: Callable[[Tensor], Tensor]
    vjp: Callable[[Tensor], Tensor]


@checked()
def products(f: Callable[[Tensor], Tensor], x: Tensor) -> Products:
    """Matrix-free products with the Jacobian of each row of a batched map.

    J^T u is a backward pass; J v is a backward pass through that one, which is linear in u, so
    neither evaluates `f` again. Where a layer's backward pass has no derivative of its own, as with
    fused attention, J v is a central difference. The graphs live as long as the result.

    Args:
        f: Map from (B, ...) to (B, ...) that treats each row alone, differentiable twice.
        x: Points, (B, ...), of floating type.

    Raises:
        ShapeError: `f` does not keep the number of rows.

    Examples:
        >>> import torch
        >>> from robustvae.jacobians import products
        >>> at = products(lambda x: x.square(), torch.tensor([[1.0, 2.0]]))
        >>> at.jvp(torch.ones(1, 2)), at.vjp(torch.ones(1, 2))
        (tensor([[2., 4.]]), tensor([[2., 4.]]))
    """
    inputs, value = _evaluate(f, x)
    product: Tensor | None
    try:
        cotangent, product = _pullback(value, inputs)
    except (RuntimeError, NotImplementedError):  # a layer whose backward pass has no derivative
        product = None

    def jvp(tangent: Tensor) -> Tensor:
        if product is None:
            return _difference(f, x, tangent)
        return _vjp(product, cotangent, tangent.to(product).reshape(product.shape)).flatten(1)

    def vjp(u: Tensor) -> Tensor:
        return _vjp(value, inputs, u.to(value)).flatten(1)

    return Products(value.detach(), jvp, vjp)


@final
@dataclass(frozen=True)
class Eigenpairs:
    """Top eigenpairs of a batch of symmetric operators.

    Attributes:
        values: Eigenvalues in descending order, (B, count).
        vectors: Unit eigenvectors, (B, count, n).
        residual: ||A v - value v|| of each pair, (B, count): some eigenvalue of A lies within
            that distance of `values`.
    """

    values: Tensor
    vectors: Tensor
    residual: Tensor


@checked()
def lanczos(
    operator: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    count: int = 1,
    steps: int | None = None,
    generator: torch.Generator,
) -> Eigenpairs:
    """Largest eigenpairs of symmetric operators by Lanczos with full reorthogonalization.

    All rows advance together, each in its own Krylov space. A space that closes early is
    continued with a fresh random direction, so multiple eigenvalues are found too.

    Args:
        operator: Vectors (B, n) to A v, (B, n), with A symmetric, one per row.
        like: Any tensor (B, n): its shape, device and dtype are taken.
        count: How many eigenpairs, at most n.
        steps: Dimension of the Krylov space, at least `count`; by default
            min(n, 4 count + 20). With `steps` = n the result is exact to rounding.
        generator: Spent on the start.

    Raises:
        RangeError: More eigenpairs than dimensions, or fewer steps than eigenpairs.

    References:
        Golub & Van Loan, Matrix Computations, section 10.3.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.jacobians import lanczos
        >>> scale = torch.tensor([1.0, 5.0, 2.0])
        >>> top = lanczos(lambda v: scale * v, torch.zeros(1, 3), generator=rv.generator(0))
        >>> round(top.values.item(), 4)
        5.0
    """
    batch, n = like.shape
    check_count(count, "count")
    steps = min(n, 4 * count + 20) if steps is None else min(steps, n)
    if not count <= steps:
        raise RangeError(f"count must be at most steps and n = {n}, got {count} with {steps} steps")
    start = _unit(randn(batch, n, like=like, generator=generator))
    values, small, basis, side = _krylov(operator, start, steps, generator)
    values, small = values.flip(1)[:, :count], small.flip(2)[:, :, :count]
    residual = (side[:, -1:] * small[:, -1]).abs() if steps < n else torch.zeros_like(values)
    return Eigenpairs(values, small.mT @ basis, residual)


@checked()
def power_iteration(
    operator: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    steps: int = 50,
    generator: torch.Generator,
) -> Eigenpairs:
    """The eigenpair largest in size of symmetric operators, by repeated products.

    Slower than `lanczos` in products, but it keeps two vectors only.

    Args:
        operator: Vectors (B, n) to A v, (B, n), with A symmetric, one per row.
        like: Any tensor (B, n): its shape, device and dtype are taken.
        steps: Number of products.
        generator: Spent on the start.

    Returns:
        `Eigenpairs` with count 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.jacobians import power_iteration
        >>> scale = torch.tensor([1.0, 5.0, 2.0])
        >>> top = power_iteration(lambda v: scale * v, torch.zeros(1, 3), generator=rv.generator(0))
        >>> round(top.values.item(), 4)
        5.0
    """
    check_count(steps, "steps")
    v = _unit(randn(*like.shape, like=like, generator=generator))
    value, image = v.new_zeros(len(v)), v
    for _ in range(steps):
        previous, image = v, operator(v)
        value = (previous * image).sum(1)
        v = _unit(image)
    residual = (image - value[:, None] * previous).norm(dim=1)
    return Eigenpairs(value[:, None], previous[:, None], residual[:, None])


@checked()
def spectral_sums(
    operator: Callable[[Tensor], Tensor],
    like: Tensor,
    functions: Sequence[Callable[[Tensor], Tensor]],
    *,
    probes: int = 4,
    steps: int = 24,
    generator: torch.Generator,
) -> Tensor:
    """Sums of functions over the eigenvalues of symmetric operators, estimated matrix-free.

    Stochastic Lanczos quadrature: the sum is n times the mean of v^T f(A) v over random unit
    vectors v, and each of these is read off a small tridiagonal matrix. Exact for `steps` = n but
    for the choice of v, whose error falls with the root of `probes` and of n.

    Args:
        operator: Vectors (B, n) to A v, (B, n), with A symmetric, one per row.
        like: Any tensor (B, n): its shape, device and dtype are taken.
        functions: Of eigenvalues, elementwise.
        probes: Random vectors.
        steps: Dimension of each Krylov space.
        generator: Spent on the vectors.

    Returns:
        The sums, (functions, B), float64.

    References:
        Ubaru, Chen & Saad, 2017, Algorithm 1.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.jacobians import spectral_sums
        >>> scale = torch.arange(1.0, 5.0)
        >>> g = rv.generator(0)
        >>> sums = spectral_sums(lambda v: 2 * v, torch.zeros(1, 4), [torch.square], generator=g)
        >>> round(sums.item(), 3)
        16.0
    """
    batch, n = like.shape
    check_count(probes, "probes")
    check_count(steps, "steps")
    total = torch.zeros(len(functions), batch, dtype=torch.float64, device=like.device)
    for _ in range(probes):
        start = _unit(randn(batch, n, like=like, generator=generator))
        values, small, _, _ = _krylov(operator, start, min(steps, n), generator)
        weights = small[:, 0].double().square()
        total += torch.stack([(weights * f(values.double())).sum(1) for f in functions])
    return n * total / probes


def _krylov(
    operator: Callable[[Tensor], Tensor], start: Tensor, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors in the basis; the basis; the side diagonal."""
    like, (batch, n), v = start, start.shape, start
    basis = like.new_zeros(batch, steps, n)
    diagonal = like.new_zeros(batch, steps)
    side = like.new_zeros(batch, steps)
    for step in range(steps):
        basis[:, step] = v
        w = operator(v)
        diagonal[:, step] = (v * w).sum(1)
        scale = w.norm(dim=1)
        w = _reject(w, basis[:, : step + 1])
        length = w.norm(dim=1)
        is_exhausted = length <= 100 * torch.finfo(w.dtype).eps * scale.clamp_min(
            diagonal.abs().amax(1)
        )
        fresh = _reject(randn(batch, n, like=like, generator=generator), basis[:, : step + 1])
        side[:, step] = length.masked_fill(is_exhausted, 0)
        v = _unit(torch.where(is_exhausted[:, None], fresh, w))
    inner = side[:, :-1]
    tridiagonal = (
        torch.diag_embed(diagonal) + torch.diag_embed(inner, 1) + torch.diag_embed(inner, -1)
    )
    values, small = torch.linalg.eigh(tridiagonal)
    return values, small, basis, side


def _evaluate(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        inputs = x.detach().requires_grad_(True)
        value = f(inputs)
        if len(value) != len(x):
            raise ShapeError(f"f must keep the number of rows, {len(x)}, got {tuple(value.shape)}")
        return inputs, value.flatten(1)


@torch.no_grad()
def _difference(f: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Tensor:
    """J v by a central difference, (B, k)."""
    v = tangent.to(x).reshape(x.shape)
    length = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    # the root of rounding that balances it against curvature, for a step across all pixels
    step = torch.finfo(x.dtype).eps ** (1 / 3) * max(x[0].numel(), 1) ** 0.5
    shape = (-1, *[1] * (x.ndim - 1))
    step_v = v * (step / length).reshape(shape)
    change = f(x + step_v).flatten(1) - f(x - step_v).flatten(1)
    return change * (length / (2 * step)).reshape(-1, 1)


def _vjp(value: Tensor, inputs: Tensor, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(inputs)
    return torch.autograd.grad(
        value,
        inputs,
        cotangent,
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )[0]


def _pullback(value: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """A cotangent u, (B, k), and J^T u as a function of it, of the inputs' shape.

    Raises:
        RuntimeError: A layer's backward pass has no derivative.
    """
    with torch.enable_grad():
        cotangent = torch.zeros_like(value, requires_grad=True)
        product = _vjp(value, inputs, cotangent, create_graph=True)
    if product.requires_grad:
        (again,) = torch.autograd.grad(
            product, cotangent, torch.zeros_like(product), retain_graph=True, allow_unused=True
        )
        if again is None:  # marked once_differentiable: the graph ends there without an error
            raise RuntimeError("the backward pass has no derivative")
    return cotangent, product


def _jacobian(f: Callable[[Tensor], Tensor], x: Tensor, mode: Mode, batched: bool) -> Tensor:
    inputs, value = _evaluate(f, x)
    size, k = inputs[0].numel(), value.shape[1]
    if mode == "forward" or (mode == "auto" and size < k):
        try:
            cotangent, product = _pullback(value, inputs)
            return _rows(product.flatten(1), cotangent, batched).mT
        except (RuntimeError, NotImplementedError):  # a backward pass that has no derivative
            if mode == "forward":
                raise
        columns = torch.eye(size, dtype=x.dtype, device=x.device)[:, None].expand(-1, len(x), -1)
        return torch.stack([_difference(f, x, column) for column in columns], -1)
    return _rows(value, inputs, batched)


def _rows(value: Tensor, inputs: Tensor, batched: bool) -> Tensor:
    """d value / d inputs, (B, k, size), one one-hot cotangent for each column of `value`."""
    batch, k = value.shape
    if not value.requires_grad:
        return inputs.new_zeros(batch, k, inputs[0].numel())
    one_hot = torch.eye(k, dtype=value.dtype, device=value.device)[:, None].expand(k, batch, k)
    if batched:
        (rows,) = torch.autograd.grad(
            value, inputs, one_hot, is_grads_batched=True, materialize_grads=True
        )
        return rows.flatten(2).transpose(0, 1).contiguous()
    return torch.stack([_vjp(value, inputs, row).flatten(1) for row in one_hot], 1)


def _reject(w: Tensor, basis: Tensor) -> Tensor:
    """`w` less its part in the span of the orthonormal rows of `basis`; twice is enough."""
    for _ in range(2):
        w = w - ((basis @ w[:, :, None]).mT @ basis)[:, 0]
    return w


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)


@checked()
def eigenpairs(stacked: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues, (B, n), and the first `count` eigenvectors, (B, count, D), of J^T J."""
    # few images at a time: their float64 copies stay in the cache
    at_once = max(1, ELEMENTS_IN_CACHE // stacked[0].numel())
    gram = torch.cat([part.double() @ part.double().mT for part in stacked.split(at_once)])
    values, vectors = torch.linalg.eigh(gram)
    values = values.flip(1).clamp_min(0)
    top = vectors.flip(2)[:, :, :count].mT.to(stacked) @ stacked
    length = torch.linalg.vector_norm(top, dim=2, keepdim=True)
    noise = stacked.shape[1] * torch.finfo(torch.float64).eps ** 0.5
    least = max(noise, 64 * torch.finfo(stacked.dtype).eps)
    visible = length > least * values[:, :1, None].sqrt()
    return values, top.div_(signs(top) * length.where(visible, math.inf))


@checked()
def signs(vectors: Tensor) -> Tensor:
    """1, or -1 where the entry largest in size of a vector is negative, (B, count, 1)."""
    if vectors.ndim != 3:
        raise ShapeError(f"vectors must be of shape (B, count, d), got {tuple(vectors.shape)}")
    low, high = vectors.aminmax(dim=2, keepdim=True)
    return torch.where(low + high < 0, -1.0, 1.0).to(vectors)


@checked()
def share_of(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is not positive."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 0.0)
