"""Where branches meet: sums and concatenations."""

from __future__ import annotations

from typing import final

from robustvae.certificates.propagation.graph import Concatenate, Sum
from robustvae.certificates.propagation.operator import Builder, Operator, Shape
from robustvae.certificates.propagation.steps import JoinStep, SumStep
from robustvae.errors import ShapeError
from robustvae.registry import register


@register("operator", "sum")
@final
class Total(Operator):
    """The sum of several features of one shape."""

    kinds = (Sum,)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One step."""
        shapes = {network.shape(node) for node in reads}
        if len(shapes) > 1:
            raise ShapeError(f"a sum wants features of one shape, got {sorted(shapes)}")
        return network.append(SumStep(reads), network.shape(reads[0]))

    def lipschitz(self, shape: Shape) -> float:
        """Of one that is read."""
        return 1.0

    def grow(self, bounds: tuple[float, ...], shape: Shape) -> float:
        """The sum."""
        return sum(bounds)


@register("operator", "concatenate")
@final
class Join(Operator):
    """Several features side by side, along the channels."""

    kinds = (Concatenate,)

    def build(self, network: Builder, reads: tuple[int, ...]) -> int:
        """One step."""
        shapes = [network.shape(node) for node in reads]
        if len({shape[1:] for shape in shapes}) > 1:
            raise ShapeError(f"a concatenation wants features of one size, got {shapes}")
        widths = tuple(shape[0] for shape in shapes)
        step = JoinStep(reads, widths)
        return network.append(step, (sum(widths), *shapes[0][1:]))

    def lipschitz(self, shape: Shape) -> float:
        """Of one that is read."""
        return 1.0

    def grow(self, bounds: tuple[float, ...], shape: Shape) -> float:
        """Squares add up."""
        return sum(bound**2 for bound in bounds) ** 0.5
