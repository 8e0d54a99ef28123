"""Distributions that encoders and decoders return: `.mean .stddev .log_prob`, element by element.

`log_prob` is per element, so a score per example is one `.flatten(1).sum(1)` at the call site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from robustvae import gate
from robustvae.errors import UnsupportedError, check_choice
from robustvae.models.deviances import BernoulliDeviance, Deviance, GaussianDeviance
from robustvae.seeding import rand, randn

MeanRule = Literal["papers", "exact"]


@runtime_checkable
class Distribution(Protocol):
    """What `encode`, `decode` and `prior` return; shapes (B, d) and (B, C, H, W)."""

    @property
    def mean(self) -> Tensor:
        """The mean."""

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of each element, of the mean's shape."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, in nats, of the mean's shape."""


def kind_of(distribution: object) -> str:
    """The name of a distribution's class; of one seen in another shape, that of the user's own.

    Examples:
        >>> import torch
        >>> from robustvae.models.likelihoods import PointMass, kind_of
        >>> kind_of(PointMass(torch.zeros(1)))
        'PointMass'
    """
    return type(getattr(distribution, "base", distribution)).__name__


@gate.know_draws
@final
@dataclass(frozen=True, eq=False, slots=True)  # no instance can have a draw of its own
class Gaussian:
    """Independent normal elements.

    Args:
        mean: Means, any shape.
        stddev: Standard deviations, of the mean's shape.

    Examples:
        >>> import torch
        >>> from robustvae.models import Gaussian
        >>> q = Gaussian(torch.zeros(2, 3), torch.ones(2, 3))
        >>> q.log_prob(torch.zeros(2, 3)).sum(1)
        tensor([-2.7568, -2.7568])
    """

    mean: Tensor
    stddev: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, in nats."""
        standard = (value - self.mean) / self.stddev
        return -0.5 * standard.square() - self.stddev.log() - 0.5 * math.log(2 * math.pi)

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Reparameterized draws, `shape` + the mean's shape."""
        noise = randn(
            *shape, *self.mean.shape, like=self.mean, generator=generator, axis=len(shape)
        )
        return self.mean + self.stddev * noise

    def deviance(self) -> Deviance:
        """(v - mean)^2 / 2 stddev^2 of each pixel."""
        return GaussianDeviance(self.mean, self.stddev)


@gate.know_draws
@final
@dataclass(frozen=True, eq=False)
class PointMass:
    """A value without a spread: what a deterministic encoder or decoder gives.

    It stands for no density: whatever needs one says so in an error.

    Args:
        mean: The value, any shape.
        missing: What was not stated, and how to state it; the message of the refusal.

    Examples:
        >>> import torch
        >>> from robustvae.models import PointMass
        >>> PointMass(torch.ones(2)).stddev
        tensor([0., 0.])
    """

    mean: Tensor
    missing: str = "a point has no density"

    @property
    def stddev(self) -> Tensor:
        """Zeros, of the mean's shape."""
        return torch.zeros_like(self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        """Raise an error: there is no density.

        Raises:
            UnsupportedError: Always, with what to state.
        """
        raise UnsupportedError(self.missing)

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """The value itself, `shape` times."""
        return self.mean.expand(*shape, *self.mean.shape)

    def deviance(self) -> Deviance:
        """Raise an error: there is no density.

        Raises:
            UnsupportedError: Always, with what to state.
        """
        raise UnsupportedError(self.missing)


@gate.know_draws
@final
@dataclass(frozen=True, eq=False)
class Laplace:
    """Independent elements with density exp(-|x - mean| / scale) / (2 scale).

    Args:
        mean: Means, any shape.
        scale: Scales, of the mean's shape; the standard deviation is sqrt(2) of it.

    Examples:
        >>> import torch
        >>> from robustvae.models import Laplace
        >>> Laplace(torch.zeros(1), torch.ones(1)).log_prob(torch.ones(1))
        tensor([-1.6931])
    """

    mean: Tensor
    scale: Tensor

    @property
    def stddev(self) -> Tensor:
        """sqrt(2) times the scale."""
        return math.sqrt(2) * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, in nats."""
        return -(value - self.mean).abs() / self.scale - (2 * self.scale).log()

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Reparameterized draws by the inverse of the distribution function."""
        uniform = rand(*shape, *self.mean.shape, like=self.mean, generator=generator) - 0.5
        # 1 - 2 |u| is 0 with probability 2^-24 in float32, where the logarithm is infinite
        tail = torch.log1p((-2 * uniform.abs()).clamp_min(-1 + torch.finfo(uniform.dtype).eps))
        return self.mean - self.scale * uniform.sign() * tail


@gate.know_draws
@final
@dataclass(frozen=True, eq=False)
class Bernoulli:
    """Independent binary elements; gray values in [0, 1] are scored by the same cross-entropy.

    Args:
        logits: Log odds, any shape.

    Examples:
        >>> import torch
        >>> from robustvae.models import Bernoulli
        >>> Bernoulli(torch.zeros(1, 2)).log_prob(torch.tensor([[1.0, 0.3]]))
        tensor([[-0.6931, -0.6931]])
    """

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """Probability of a one."""
        return torch.sigmoid(self.logits)

    @property
    def stddev(self) -> Tensor:
        """Standard deviation of each element."""
        mean = self.mean
        return (mean * (1 - mean)).sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log likelihood of each element, in nats: minus the binary cross-entropy."""
        return value * self.logits - functional.softplus(self.logits)

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Zeros and ones, `shape` + the logits' shape; no gradient passes through them."""
        uniform = rand(
            *shape, *self.logits.shape, like=self.logits, generator=generator, axis=len(shape)
        )
        return (uniform < self.mean.detach()).to(self.logits.dtype)

    def deviance(self) -> Deviance:
        """KL(Ber(v) | Ber(mean)) of each pixel."""
        return BernoulliDeviance(self.logits)


@gate.know_draws
@final
@dataclass(frozen=True, eq=False)
class ContinuousBernoulli:
    r"""Independent elements on [0, 1] with density C(l) exp(l x) in the logit l.

    log C = log(l / tanh(l/2)) - softplus(l), the Bernoulli cross-entropy plus its normalizer;
    near l = 0 by its series.

    Warning:
        The papers reconstruct by lambda = sigmoid(l), which is not the distribution's mean.
        That stays the default (`rule="papers"`); `rule="exact"` gives 1 / (1 - e^-l) - 1 / l.

    Args:
        logits: Log odds of lambda, any shape.
        rule: Which reconstruction `.mean` is: "papers" or "exact".

    Raises:
        UnknownNameError: Any other rule.

    References:
        Loaiza-Ganem & Cunningham, 2019, Eq. 5-8.

    Examples:
        >>> import torch
        >>> from robustvae.models import ContinuousBernoulli
        >>> p = ContinuousBernoulli(torch.tensor([2.0]), rule="exact")
        >>> p.mean
        tensor([0.6565])
    """

    logits: Tensor
    rule: MeanRule = field(default="papers")

    def __post_init__(self) -> None:
        """Validate the rule."""
        check_choice("mean of the continuous Bernoulli", self.rule, ("papers", "exact"))

    @property
    def mean(self) -> Tensor:
        """The reconstruction, by `rule`."""
        return torch.sigmoid(self.logits) if self.rule == "papers" else self._exact_mean()

    @property
    def stddev(self) -> Tensor:
        """Exact standard deviation of each element: sqrt(1/l^2 - 1/(4 sinh^2(l/2)))."""
        small, safe = self._near_zero()
        exact = 1 / safe.square() - 1 / (4 * torch.sinh(safe.clamp(-80, 80) / 2).square())
        square = self.logits.square()
        series = 1 / 12 - square / 240 + square**2 / 6048 - square**3 / 172800
        return torch.where(small, series, exact).clamp_min(0).sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each element, in nats."""
        cross_entropy = value * self.logits - functional.softplus(self.logits)
        return cross_entropy + self.log_normalizer()

    def log_normalizer(self) -> Tensor:
        """log C(lambda) of each element: log(l / tanh(l/2)), log 2 at l = 0."""
        small, safe = self._near_zero()
        exact = (safe / torch.tanh(safe / 2)).log()
        square = self.logits.square()
        series = math.log(2) + square / 12 - 7 * square**2 / 1440 + 31 * square**3 / 90720
        return torch.where(small, series, exact)

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Reparameterized draws in [0, 1] by the inverse of the distribution function."""
        uniform = rand(
            *shape, *self.logits.shape, like=self.logits, generator=generator, axis=len(shape)
        )
        small, safe = self._near_zero()
        # log(1 + u (e^l - 1)) / l, written so that neither sign of l overflows
        magnitude = safe.abs()
        inverse = 1 + torch.log(uniform + (1 - uniform) * torch.exp(-magnitude)) / magnitude
        pixels = torch.where(safe > 0, inverse, 1 - inverse)
        return torch.where(small, uniform, pixels)

    def deviance(self) -> Deviance:
        """That of a Bernoulli of these logits; the normalizer does not depend on the pixel."""
        return BernoulliDeviance(self.logits)

    def _exact_mean(self) -> Tensor:
        small, safe = self._near_zero()
        upper = -1 / torch.expm1(-safe.abs())
        exact = torch.where(safe > 0, upper, 1 - upper) - 1 / safe
        square = self.logits.square()
        slope = 1 / 12 - square / 720 + square**2 / 30240 - square**3 / 1209600
        return torch.where(small, 0.5 + self.logits * slope, exact)

    def _near_zero(self) -> tuple[Tensor, Tensor]:
        small = self.logits.abs() < 0.1
        return small, torch.where(small, torch.ones_like(self.logits), self.logits)
