"""The largest radius at which something holds, by as few questions as its kind allows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robustvae.arguments import checked


@checked(formula=True)
def largest(holds: Callable[[Tensor], Tensor], upper: Tensor, steps: int = 36) -> Tensor:
    """The largest radius at which `holds` was seen to hold, by bisection in batch.

    Args:
        holds: Radii (B,) to booleans (B,); false above some radius and true below it.
        upper: Radii above which it does not hold or is not asked, (B,).
        steps: Halvings; the answer is below the true one by at most `upper` / 2**steps.

    Returns:
        Radii, (B,): one at which `holds` returned true, or 0.

    Examples:
        >>> import torch
        >>> from robustvae.bounds import largest
        >>> edge = torch.tensor([0.3, 2.0])
        >>> found = largest(lambda rho: rho <= edge, torch.ones(2))
        >>> bool(0.3 - 1e-6 < found[0] <= 0.3), float(found[1])
        (True, 1.0)
    """
    high = upper.clone()
    low = torch.zeros_like(high)
    holds_above = holds(high)
    low = torch.where(holds_above, high, low)
    # `low` always held when it was asked, so a predicate that is not monotone does no harm
    for _ in range(steps):
        middle = (low + high) / 2
        holds_there = holds(middle)
        low = torch.where(holds_there, middle, low)
        high = torch.where(holds_there, high, middle)
    return low


@checked(formula=True)
def crossing(
    value: Callable[[Tensor, Tensor], Tensor], upper: Tensor, guess: Tensor | None = None
) -> Tensor:
    """As `largest` for what falls smoothly: where a value crosses 0, in a third of the questions.

    False position with the Illinois rule; every fourth step halves, so that a jump does no harm.
    Rows that are done are asked no more.

    Args:
        value: Radii (n,) and their rows (n,) to numbers (n,), above 0 where it holds.
        upper: Radii above which it is not asked, (B,).
        guess: Radii near the crossing, (B,); a bad one costs questions, no more.

    Returns:
        Radii, (B,): one at which the value was above 0, or 0; below the crossing by at most about
        4e-10 of `upper`.

    Examples:
        >>> import torch
        >>> from robustvae.bounds import crossing
        >>> edge = torch.tensor([0.3, 2.0], dtype=torch.float64)
        >>> found = crossing(lambda rho, rows: edge[rows] - rho, torch.ones(2).double())
        >>> bool(0.3 - 1e-9 < found[0] <= 0.3), float(found[1])
        (True, 1.0)
    """
    root, rows = torch.zeros_like(upper), torch.arange(len(upper), device=upper.device)
    low, high = torch.zeros_like(upper), upper.clone()
    above, below = torch.full_like(upper, math.nan), torch.full_like(upper, math.nan)
    for at in () if guess is None else (guess * (1 - 2e-5), guess * (1 + 2e-5)):
        at = torch.minimum(at.clamp_min(0), upper)
        height = value(at, rows)
        low, above = torch.where(height > 0, at, low), torch.where(height > 0, height, above)
        first = (height <= 0) & below.isnan()
        high, below = torch.where(first, at, high), torch.where(first, height, below)
    for ends, values in ((low, above), (high, below)):
        unknown = values.isnan().nonzero()[:, 0]
        if len(unknown):
            values[unknown] = value(ends[unknown], unknown)
    root = torch.where(below > 0, upper, torch.where(above > 0, low, 0.0))
    keep = (above > 0) & (below <= 0)
    rows, low, high, above, below = rows[keep], low[keep], high[keep], above[keep], below[keep]
    side = torch.zeros_like(above)
    # sixty steps end a pure bisection, too: every fourth one halves
    for step in range(1, 61):
        if not len(rows):
            break
        width = 1e-10 * upper[rows]
        middle = low + (high - low) * (above / (above - below))
        # a step to either side of the guess closes the bracket once the guess is good
        middle = torch.where(side > 0, middle + width, middle - width)
        if step % 4 == 0:
            middle = (low + high) / 2
        middle = torch.maximum(torch.minimum(middle, high), low)
        height = value(middle, rows)
        is_positive = height > 0
        below = torch.where(is_positive & (side > 0), below / 2, below)
        above = torch.where(~is_positive & (side < 0), above / 2, above)
        low, above = torch.where(is_positive, middle, low), torch.where(is_positive, height, above)
        high, below = (
            torch.where(is_positive, high, middle),
            torch.where(is_positive, below, height),
        )
        side = torch.where(is_positive, 1.0, -1.0).to(side)
        root[rows] = low
        keep = high - low > 4 * width
        rows, low, high, side = rows[keep], low[keep], high[keep], side[keep]
        above, below = above[keep], below[keep]
    return root
