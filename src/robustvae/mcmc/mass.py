"""Mass matrices as values: how momenta become velocities, and gradients become forces.

Each is given by A, the square root of the inverse mass matrix, M^-1 = A A'. Momenta are kept in
whitened coordinates, so their law is the same whatever the mass, and no matrix is ever inverted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import ShapeError


class MassMatrix(ABC):
    """How a trajectory is scaled: a target of spread s is crossed quickest by A near s."""

    @abstractmethod
    def velocity(self, momentum: Tensor) -> Tensor:
        """A p, (B, d): where a momentum in whitened coordinates moves a position."""

    @abstractmethod
    def force(self, gradient: Tensor) -> Tensor:
        """A' g, (B, d): what a gradient adds to a momentum in whitened coordinates."""

    @abstractmethod
    def rows(self, index: Tensor) -> MassMatrix:
        """The mass matrices of some chains, `index` of shape (b,)."""


@final
@dataclass(frozen=True, eq=False)
class UnitMass(MassMatrix):
    """The identity: positions and momenta in the target's own coordinates.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import UnitMass
        >>> UnitMass().velocity(torch.ones(1, 2))
        tensor([[1., 1.]])
    """

    def velocity(self, momentum: Tensor) -> Tensor:
        """The momentum itself, (B, d)."""
        return momentum

    def force(self, gradient: Tensor) -> Tensor:
        """The gradient itself, (B, d)."""
        return gradient

    def rows(self, index: Tensor) -> MassMatrix:
        """Itself."""
        return self


@final
@dataclass(frozen=True, eq=False)
class DiagonalMass(MassMatrix):
    """A spread for each coordinate.

    Args:
        scale: The diagonal of A, (B, d) or (d,), in latent units.
    """

    scale: Tensor

    def velocity(self, momentum: Tensor) -> Tensor:
        """A p, (B, d)."""
        return self.scale * momentum

    def force(self, gradient: Tensor) -> Tensor:
        """A' g, (B, d)."""
        return self.scale * gradient

    def rows(self, index: Tensor) -> MassMatrix:
        """Of some chains; one diagonal for all stays what it is."""
        return self if self.scale.ndim == 1 else DiagonalMass(self.scale[index])


@final
@dataclass(frozen=True, eq=False)
class DenseMass(MassMatrix):
    """A whole matrix for each chain.

    Args:
        scale: A, (B, d, d), in latent units.
    """

    scale: Tensor

    def velocity(self, momentum: Tensor) -> Tensor:
        """A p, (B, d)."""
        return (self.scale @ momentum.unsqueeze(2)).squeeze(2)

    def force(self, gradient: Tensor) -> Tensor:
        """A' g, (B, d)."""
        return (self.scale.mT @ gradient.unsqueeze(2)).squeeze(2)

    def rows(self, index: Tensor) -> MassMatrix:
        """Of some chains."""
        return DenseMass(self.scale[index])


@checked()
def mass_matrix(scale: Tensor | None) -> MassMatrix:
    """The mass matrix of a square root A: None for the identity, else by its number of axes.

    Args:
        scale: (d,) or (B, d) for a diagonal, (B, d, d) for a matrix, None for the identity.

    Raises:
        ShapeError: A tensor of another number of axes.

    Examples:
        >>> import torch
        >>> from robustvae.mcmc import mass_matrix
        >>> type(mass_matrix(torch.ones(3, 2))).__name__
        'DiagonalMass'
    """
    if scale is None:
        return UnitMass()
    if not 1 <= scale.ndim <= 3:
        raise ShapeError(f"scale must be (d,), (B, d) or (B, d, d), got {tuple(scale.shape)}")
    return DenseMass(scale) if scale.ndim == 3 else DiagonalMass(scale)
