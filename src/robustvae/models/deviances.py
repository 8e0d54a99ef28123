"""How far an image lies from a likelihood, and which image of a ball lies nearest.

A likelihood that says `deviance()` has a robust posterior: ours do but for the Laplace, and so may
a user's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

_EDGE = 8  # units of rounding by which a pixel is taken to lie on the end of its range


class Deviance(Protocol):
    """The deviance dev(v) of pixels v in [0, 1], (B, C, H, W), from a likelihood."""

    @property
    def logits(self) -> Tensor | None:
        """Log odds where dev'(v) = logit(v) - logits; None for another derivative."""

    @property
    def center(self) -> Tensor:
        """The pixels of deviance 0."""

    def compliance(self, value: Tensor, multiplier: Tensor) -> Tensor:
        """1 / (dev'' + multiplier) at each pixel, 0 where the pixel range holds it."""

    def minimizer(
        self, x: Tensor, multiplier: Tensor, logit: Tensor | None, sweeps: int
    ) -> tuple[Tensor, Tensor | None]:
        """The minimizer over [0, 1] of dev(v) + multiplier ||v - x||^2 / 2, and its logits.

        Args:
            x: Pixels, (B, C, H, W).
            multiplier: Positive, (B, 1, 1, 1).
            logit: Where a search for the logits begins; None for 0.
            sweeps: Steps of that search.
        """

    def force(self, value: Tensor) -> Tensor:
        """dev' at each pixel."""

    def negative_entropy(self, value: Tensor) -> Tensor:
        """What turns minus the log likelihood of a pixel into its deviance, up to a constant."""

    def unit_parameters(self, stddev: Tensor) -> Tensor:
        """Parameters in units in which the likelihood's Fisher information is 1, (B, n).

        Args:
            stddev: Of the likelihood, (B, C, H, W).
        """


@final
@dataclass(frozen=True, eq=False)
class GaussianDeviance:
    """(v - mean)^2 / 2 stddev^2 of each pixel.

    Args:
        mean: Means, (B, C, H, W).
        stddev: Standard deviations, of that shape.
    """

    mean: Tensor
    stddev: Tensor
    logits = None

    @property
    def center(self) -> Tensor:
        """The mean."""
        return self.mean

    def compliance(self, value: Tensor, multiplier: Tensor) -> Tensor:
        """1 / (1 / stddev^2 + multiplier), 0 at the ends of the range."""
        stiffness = self.stddev.square().reciprocal().detach() + multiplier
        edge = _EDGE * torch.finfo(value.dtype).eps
        return ((value > edge) & (value < 1 - edge)).to(value.dtype) / stiffness

    def minimizer(
        self, x: Tensor, multiplier: Tensor, logit: Tensor | None, sweeps: int
    ) -> tuple[Tensor, Tensor | None]:
        """The mean of both, by their precisions, in range."""
        precision = self.stddev.square().reciprocal()
        pull = (self.mean * precision + multiplier * x) / (precision + multiplier)
        return pull.clamp(0, 1), None

    def force(self, value: Tensor) -> Tensor:
        """(v - mean) / stddev^2."""
        return (value - self.mean) * self.stddev.square().reciprocal()

    def negative_entropy(self, value: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(value)

    def unit_parameters(self, stddev: Tensor) -> Tensor:
        """The mean over the spread, and sqrt(2) times the spread's logarithm."""
        scaled, spread = self.mean / stddev.detach(), math.sqrt(2) * stddev.log()
        return torch.cat([scaled.flatten(1), spread.flatten(1)], dim=1)


@final
@dataclass(frozen=True, eq=False)
class BernoulliDeviance:
    """KL(Ber(v) | Ber(sigmoid(logits))) of each pixel.

    Args:
        logits: Log odds, (B, C, H, W).
    """

    logits: Tensor

    @property
    def center(self) -> Tensor:
        """The probability of a one."""
        return torch.sigmoid(self.logits)

    def compliance(self, value: Tensor, multiplier: Tensor) -> Tensor:
        """1 / (1 / v (1 - v) + multiplier)."""
        variance = value * (1 - value)
        return variance / (1 + multiplier * variance)

    def minimizer(
        self, x: Tensor, multiplier: Tensor, logit: Tensor | None, sweeps: int
    ) -> tuple[Tensor, Tensor | None]:
        """By Newton's steps on logit(v) + nu v = logits + nu x.

        From logit 0, the inflection point, they are monotone.
        """
        target = self.logits + multiplier * x
        logit = torch.zeros_like(target) if logit is None else logit
        for _ in range(sweeps):
            mean = torch.sigmoid(logit)
            slope = 1 + multiplier * mean * (1 - mean)
            logit = logit - (logit + multiplier * mean - target) / slope
            # the root lies between c - nu and c: a step from afar may not leave that
            logit = torch.minimum(torch.maximum(logit, target - multiplier), target)
        return torch.sigmoid(logit), logit

    def force(self, value: Tensor) -> Tensor:
        """logit(v) - logits."""
        return torch.logit(value, 1e-7) - self.logits

    def negative_entropy(self, value: Tensor) -> Tensor:
        """v log v + (1 - v) log(1 - v), 0 at both ends."""
        ends = (value <= 0) | (value >= 1)
        inner = torch.where(ends, torch.full_like(value, 0.5), value)
        inner = inner * inner.log() + (1 - inner) * (-inner).log1p()
        return torch.where(ends, torch.zeros_like(value), inner)

    def unit_parameters(self, stddev: Tensor) -> Tensor:
        """The logits times the spread."""
        return (stddev.detach() * self.logits).flatten(1)
