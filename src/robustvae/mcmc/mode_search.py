"""The mode of any batched log-density, every row of the batch by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.display import three_lines
from robustvae.errors import check_count, check_positive
from robustvae.mcmc.leapfrog import LogDensity, evaluate


@final
@three_lines()
@dataclass(frozen=True, eq=False, repr=False)
class Mode:
    """The highest point that a mode search met.

    Attributes:
        z: Positions, (B, d).
        log_density: Log density there, in nats up to a constant, (B,).
        gradients: Gradient evaluations spent on each row.
    """

    z: Tensor
    log_density: Tensor
    gradients: int


@checked()
def mode_search(
    log_density: LogDensity, z: Tensor, *, steps: int, rate: float = 0.1, graph: bool = False
) -> Mode:
    """Climb by Adam, the rate falling to zero along a half cosine; the best point met is kept.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        z: Starts, (B, d).
        steps: Gradient evaluations, the one at the start included.
        rate: First step length in every coordinate.
        graph: Keep the graph through the search, for attacks that differentiate it.

    Raises:
        RangeError: `steps` or `rate` is not positive.

    References:
        Kingma & Ba, 2015, Algorithm 1; [Kuzina22] appendix B.3.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import mode_search
        >>> mode = mode_search(lambda z: -(z - 1).square().sum(1), torch.zeros(1, 2), steps=100)
        >>> bool((mode.z - 1).abs().max() < 0.01)
        True
    """
    check_count(steps, "steps")
    check_positive(rate, "rate")
    state = evaluate(log_density, z, graph=graph)
    best, highest = state.z, state.log_density.detach()
    mean = square = torch.zeros_like(state.z)
    for t in range(1, steps):
        # Adam's usual memories: ten gradients for the direction, a thousand for the scale.
        mean = 0.9 * mean + 0.1 * state.gradient
        square = 0.999 * square + 0.001 * state.gradient.square()
        # A cosine down to 0: the last steps settle within the mode that the first ones reached.
        length = 0.5 * rate * (1 + math.cos(math.pi * (t - 1) / steps))
        # 1e-16, not Adam's 1e-8 after the root: near a flat mode gradients of 1e-8 still count.
        uphill = mean / (1 - 0.9**t) / (square / (1 - 0.999**t) + 1e-16).sqrt()
        state = evaluate(log_density, state.z + length * uphill, graph=graph)
        # The best is kept, not the last: momentum overshoots, and more steps must never be worse.
        height = state.log_density.detach()
        higher = height > highest
        best = torch.where(higher.unsqueeze(1), state.z, best)
        highest = torch.where(higher, height, highest)
    return Mode(best, highest, steps)


@checked()
def implicit(log_density: LogDensity, z: Tensor, *, products: int = 20) -> Tensor:
    r"""A mode, with the derivatives that the implicit function theorem gives it.

    At a mode the gradient vanishes, so dz/dx = H^-1 d(gradient)/dx with H minus the Hessian.
    Backwards that is one solve with H by conjugate gradients and one product with
    d(gradient)/dx: the memory of one evaluation, where unrolling a search keeps every step.

    Warning:
        Right where `z` is a mode, H is positive definite and the solve has converged. A search
        that was stopped early is another function of x, and its unrolled gradient another.

    Args:
        log_density: Latents (B, d) to log densities (B,), depending on what is differentiated.
        z: Modes, (B, d).
        products: Most Hessian products that a backward pass spends.

    Returns:
        The same values, (B, d), with a graph.

    References:
        Bai et al., 2019, Theorem 1.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import implicit
        >>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
        >>> z = implicit(lambda z: -(z - 3 * x).square().sum(1), 3 * x)
        >>> torch.autograd.grad(z.sum(), x)[0]
        tensor([[3., 3.]])
    """
    point = z.detach().requires_grad_()
    gradient = evaluate(log_density, point, graph=True).gradient

    def curvature(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(
            gradient, point, v, retain_graph=True, materialize_grads=True
        )
        return -product

    # The hook turns the cotangent u of z into H^-1 u, which then flows on into d(gradient)/dx.
    cotangent = gradient.clone()
    cotangent.register_hook(lambda u: conjugate_gradients(curvature, u, products))
    return z.detach() + (cotangent - cotangent.detach())


def conjugate_gradients(product: LogDensity, b: Tensor, steps: int) -> Tensor:
    """Solve H v = b for every row, by at most `steps` products with H.

    A row stops where H shows no positive curvature.

    Args:
        product: v to H v, both (B, d).
        b: Right-hand sides, (B, d).
        steps: Most products.
    """
    tiny = torch.finfo(b.dtype).tiny
    v, residual, way = torch.zeros_like(b), b, b
    size = residual.square().sum(1, keepdim=True)
    floor = torch.finfo(b.dtype).eps ** 2 * size
    for _ in range(steps):
        image = product(way)
        curvature = (way * image).sum(1, keepdim=True)
        going = (curvature > 0) & (size > floor)
        length = torch.where(going, size / curvature.clamp_min(tiny), torch.zeros_like(size))
        v, residual = v + length * way, residual - length * image
        fresh = residual.square().sum(1, keepdim=True)
        way = torch.where(
            going, residual + fresh / size.clamp_min(tiny) * way, torch.zeros_like(way)
        )
        size = fresh
    return v
