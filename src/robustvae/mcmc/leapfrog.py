"""The leapfrog integrator for any batched log-density: every row of the batch is its own chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import ShapeError
from robustvae.mcmc.mass import MassMatrix, UnitMass

UNIT_MASS = UnitMass()

LogDensity = Callable[[Tensor], Tensor]


class Target(Protocol):
    """A log density of a batch that can be cut down to some of its rows."""

    def __call__(self, z: Tensor) -> Tensor:
        """Log densities, (B,), at positions (B, d)."""
        ...

    def rows(self, index: Tensor) -> Target:
        """The log density of the rows `index`, (b,) whole numbers, alone."""
        ...


@final
@dataclass(frozen=True, eq=False)
class State:
    """Where the chains stand, with the density and its gradient there, to be used again.

    Attributes:
        z: Positions, (B, d).
        log_density: Log density in nats, up to a constant, (B,).
        gradient: Gradient of the log density, (B, d).
    """

    z: Tensor
    log_density: Tensor
    gradient: Tensor


@checked()
def evaluate(log_density: LogDensity, z: Tensor, *, graph: bool = False) -> State:
    """The log density and its gradient at `z`: one gradient evaluation for every chain.

    Args:
        log_density: Positions (B, d) to log densities (B,). One that has a method
            `with_gradient(z)`, returning the densities and gradients, is asked by that instead
            when a graph is kept.
        z: Positions, (B, d).
        graph: Keep the graph, so that whatever the gradient depends on can be differentiated.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import evaluate
        >>> evaluate(lambda z: -0.5 * z.square().sum(1), torch.ones(1, 2)).gradient
        tensor([[-1., -1.]])
    """
    with torch.enable_grad():
        if not graph:
            z = z.detach()
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        if graph and hasattr(log_density, "with_gradient"):
            value, gradient = log_density.with_gradient(z)
        else:
            value = log_density(z)
            if value.shape != z.shape[:1]:
                raise ShapeError(
                    f"log_density must return one number a chain, {tuple(z.shape[:1])}, got "
                    f"{tuple(value.shape)}: sum over the latent axis"
                )
            (gradient,) = torch.autograd.grad(value.sum(), z, create_graph=graph)
    return State(z, value, gradient) if graph else State(z.detach(), value.detach(), gradient)


@checked()
def leapfrog(
    log_density: LogDensity,
    state: State,
    momentum: Tensor,
    *,
    step: Tensor | float,
    n_steps: int,
    mass: MassMatrix = UNIT_MASS,
    graph: bool = False,
) -> tuple[State, Tensor]:
    r"""Follow Hamilton's equations of H(z, p) = -log density(z) + p'p / 2 for `n_steps` steps.

    p += step/2 A' grad; n_steps times { z += step A p; p += step A' grad }, the last one half,
    with grad the gradient of the log density. A whitens the target (mass matrix (A A')^-1).
    It is reversible, keeps volume, and its energy error is of second order in `step`.
    The cost is `n_steps` gradient evaluations: the first is carried over in `state`.

    Args:
        log_density: Positions (B, d) to log densities (B,).
        state: Where the chains stand.
        momentum: Momenta in whitened coordinates, (B, d).
        step: Step size, one number or (B, 1).
        n_steps: Leapfrog steps L.
        mass: The mass matrix (A A')^-1.
        graph: Keep the graph through the trajectory.

    Returns:
        The new state and the new momenta, (B, d).

    References:
        Neal, 2011, Eq. 2.28-2.30; [Kuzina22] Algorithm 1.
    """
    for _ in range(n_steps):
        momentum = momentum + 0.5 * step * mass.force(state.gradient)
        state = evaluate(log_density, state.z + step * mass.velocity(momentum), graph=graph)
        # Half a step with the gradient at the new place, never with the one before: a stale
        # momentum passes every test of shapes and leaves the sampler wrong at order `step`.
        momentum = momentum + 0.5 * step * mass.force(state.gradient)
    return state, momentum
