"""What looks along rays have told of where they fail."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

NEAR = 1.02
"""Shares up to which draws at a point tell of its boundary."""
_LONGER = 2.0  # times what held, up to which a guess is trusted and looked at


@final
@dataclass(eq=False)
class Rays:
    """What was seen along rays: the greatest share that held and the least that failed, any shape.

    Attributes:
        rest: The tolerance at the input.
        r: What a failure exceeds.
    """

    rest: Tensor
    r: float
    low: Tensor = field(init=False)
    at_low: Tensor = field(init=False)
    high: Tensor = field(init=False)
    at_high: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Nothing was seen but the input."""
        self.low, self.at_low = torch.zeros_like(self.rest), self.rest.clone()
        self.high = torch.full_like(self.rest, math.inf)
        self.at_high = self.high.clone()

    def part(self, *index: Tensor) -> Rays:
        """Some of the rays."""
        part = Rays(self.rest[index], self.r)
        for name in ("low", "at_low", "high", "at_high"):
            setattr(part, name, getattr(self, name)[index])
        return part

    def note(self, share: Tensor, value: Tensor, which: Tensor | None = None) -> None:
        """A look at shares of some rays, or of all, and the tolerances there."""
        index = ... if which is None else which
        fails = value > self.r
        above = fails & (share < self.high[index])
        below = ~fails & (share > self.low[index]) & (share < self.high[index])
        for side, moves in (("high", above), ("low", below)):
            for name, seen in ((side, share), (f"at_{side}", value)):
                column = getattr(self, name)
                column[index] = torch.where(moves, seen, column[index])
        # what held beyond what failed was cut short by the range: the nearer one counts
        self.low = torch.where(self.low < self.high, self.low, 0.0)
        self.at_low = torch.where(self.low > 0, self.at_low, self.rest)

    def guess(self) -> Tensor:
        """Where r should be met: squares of tolerances, straight over squares of shares."""
        square = self.at_low.square()
        part = (self.r**2 - square) / (self.at_high.square() - square).clamp_min(1e-12)
        part = torch.where(self.low > 0, part.clamp(0.1, 0.9), part.clamp(1e-9, 1.0))
        part = torch.where(self.at_high.isfinite(), part, 0.5)
        between = (self.low.square() + part * (self.high.square() - self.low.square())).sqrt()
        further = self.low * meets(self.rest, self.at_low, self.r)
        return torch.where(self.high.isfinite(), between, further.nan_to_num(math.inf))

    def lengths(self, guess: Tensor, size: Tensor, largest: float) -> Tensor:
        """Sizes at which rays of these sizes should fail, those beyond `largest` infinite.

        What held and should hold for more than twice as long, such as the input itself by the
        chance of its draws, is put behind all that is known better.
        """
        length = torch.where(guess.isfinite() & (size > 0), guess * size, math.inf)
        length = torch.where(length <= largest, length, math.inf)
        trusted = self.high.isfinite() | (guess <= _LONGER * self.low)
        return torch.where(trusted, length, length + 10 * largest)

    def look(self, guess: Tensor) -> Tensor:
        """Where to look: at the guess, but not far beyond what held."""
        return torch.where(self.high.isfinite(), guess, torch.minimum(guess, _LONGER * self.low))

    def seen_near(self, share: Tensor) -> Tensor:
        """Whether these shares are known: one within two percent failed, or held near to r."""
        failed = (self.high / share - 1).abs() <= NEAR - 1
        held = ((self.low / share - 1).abs() <= NEAR - 1) & (self.at_low > 0.9 * self.r)
        return failed | held


def meets(rest: Tensor, value: Tensor, r: float) -> Tensor:
    """The share of the way at which q^2 = rest^2 + (value^2 - rest^2) share^2 meets r^2."""
    rise = value.square() - rest.square()
    share = ((r**2 - rest.square()).clamp_min(1e-9 * r**2) / rise.clamp_min(1e-12)).sqrt()
    return torch.where((rise > 0) & value.isfinite(), share, math.inf)
