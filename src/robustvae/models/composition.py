"""What a model is made of: the networks between an image, a code and a reconstruction.

Bounds by the weights are computed from these networks. A model of this library states its own; of
a stranger's model nothing stated is believed, its calls are read by a trace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from robustvae.models.networks import LOG_VAR_RANGE, log_var_to_stddev

SpreadRule = Literal["constant", "log_var", "log_stddev", "stddev"]

LARGEST = 1e150
"""Stands for a Lipschitz constant that is not bounded; its square is still a number."""


@final
@dataclass(frozen=True)
class Spread:
    """How an encoder's standard deviation comes about: a number, or a head and what follows it.

    Args:
        rule: "constant"; or what the head gives: "log_var" (kept within `LOG_VAR_RANGE`),
            "log_stddev" or "stddev".
        constant: The standard deviation of every coordinate and input, where it is constant.
        offset: Added to what the head gives; at least 0.
        norm: Greatest norm over the coordinates, onto which longer spreads are projected.

    Examples:
        >>> import torch
        >>> from robustvae.models.composition import Spread
        >>> Spread("log_var", offset=0.5).stddev(torch.zeros(1, 2))
        tensor([[1.5000, 1.5000]])
    """

    rule: SpreadRule
    constant: float | None = None
    offset: float = 0.0
    norm: float | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it is the same for every input."""
        return self.rule == "constant"

    def stddev(self, head: Tensor) -> Tensor:
        """Standard deviations, (B, d), from what the head gives, (B, d)."""
        stddev = self._before_norm(head)
        if self.norm is None:
            return stddev
        norm = torch.linalg.vector_norm(stddev, dim=1, keepdim=True)
        return stddev * (self.norm / norm).clamp(max=1.0)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the standard deviation, (B, d), from bounds on what the head gives."""
        low, high = (self._before_norm(end).clamp_min(0) for end in (low, high))
        if self.norm is None:
            return low, high
        short, long = (end.norm(dim=1, keepdim=True) for end in (low, high))
        return low * (self.norm / long).clamp(max=1.0), high * (self.norm / short).clamp(max=1.0)

    def growth(self, head: float) -> tuple[float, float]:
        """Lipschitz constants of the standard deviation, and of the logarithm of one coordinate.

        Args:
            head: Lipschitz constant of the head.

        Returns:
            Both l2 to l2; of the logarithm infinite where it is not bounded.
        """
        if self.is_constant:
            return 0.0, 0.0
        if self.rule == "stddev":
            return head, math.inf  # a greatest norm projects: the constant stands
        log = head / 2 if self.rule == "log_var" else head
        # the log variance ends at 20, so that the spread's slope is at most exp(10) of the log's
        most = math.exp(LOG_VAR_RANGE[1] / 2) if self.rule == "log_var" else LARGEST
        # the common factor of the projection can grow as well
        return most * log, log if self.norm is None else 2 * log

    def share(self, head: Tensor) -> Tensor:
        """By what share of itself a spread errs, whose head errs by so much, (B,).

        Only of a spread that is the exponential of its head.
        """
        error = torch.expm1(head if self.rule == "log_stddev" else head / 2)
        # brought within a norm, a spread errs by as much again
        return error if self.norm is None else 2 * error

    @property
    def is_exponential(self) -> bool:
        """Whether an error of the head is one of the spread's logarithm."""
        return self.rule in ("log_var", "log_stddev")

    def _before_norm(self, head: Tensor) -> Tensor:
        if self.constant is not None:
            return torch.full_like(head, self.constant)
        if self.rule == "log_var":
            return log_var_to_stddev(head) + self.offset
        return (head.exp() if self.rule == "log_stddev" else head) + self.offset


@final
@dataclass(frozen=True, eq=False)
class Composition:
    """The networks of a model.

    Attributes:
        trunk: Images (B, C, H, W) to the features that both heads read.
        mean_head: Features to the means of the posterior, (B, width).
        spread: How the standard deviation comes about.
        spread_head: Features to what `spread` reads; None where it is constant.
        width: Of the flat latent, how many coordinates these speak of, from the first.
        decoder: Codes (B, d) to the likelihood's parameters, (B, ...); None where the codes of
            several layers meet, whose reconstruction no bound follows.
        likelihood: As of `models.create("vae")`: what makes the mean of those parameters.
        scale: Standard deviation of a Gaussian likelihood.
        links: Networks from each layer's mean to the next one's, of those that the decoder reads.
        widths: Widths of these layers.
        joint: One network to the mean and to what the spread is made of, in place of the heads.
        precision: By how much the reconstruction may differ from what the networks give, such as
            by probabilities that are kept away from 0 and 1.
    """

    trunk: nn.Module
    mean_head: nn.Module
    spread: Spread
    width: int
    spread_head: nn.Module | None = None
    decoder: nn.Module | None = None
    likelihood: str = "gaussian"
    scale: float = 1.0
    links: tuple[nn.Module, ...] = ()
    widths: tuple[int, ...] = ()
    joint: nn.Module | None = None
    precision: float = 0.0

    @property
    def mean(self) -> nn.Module:
        """Images to means."""
        return nn.Sequential(self.trunk, self.mean_head)

    @property
    def spread_network(self) -> nn.Module | None:
        """Images to what the spread is made of; None where it is constant."""
        return None if self.spread_head is None else nn.Sequential(self.trunk, self.spread_head)


@final
@dataclass(frozen=True, eq=False)
class Paths:
    """What a stranger's model does, as modules that a trace can read.

    Attributes:
        encoder: Images (B, C, H, W) in [0, 1] to (mean, spread), both (B, d).
        decoder: Codes (B, d) to the reconstruction, (B, C, H, W) in [0, 1].
        rule: What the second of the encoder's outputs is.
        is_probability: Whether the reconstruction is read as given only inside [0, 1].
        precision: As of `Composition`.
    """

    encoder: nn.Module
    decoder: nn.Module
    rule: SpreadRule = "stddev"
    is_probability: bool = False
    precision: float = 0.0


class _Encoding(nn.Module):
    """Images to the mean and standard deviation of a model's posterior."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(x)  # type: ignore[operator]
        return posterior.mean, posterior.stddev


class _Decoding(nn.Module):
    """Codes to the mean of a model's likelihood."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        mean: Tensor = self.vae.decode(z).mean  # type: ignore[operator]
        return mean


def paths_of(vae: nn.Module) -> Paths:
    """The model's `encode` and `decode` themselves."""
    return Paths(_Encoding(vae), _Decoding(vae))
