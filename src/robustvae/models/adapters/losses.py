"""The spread of a likelihood that a training loss implies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from robustvae.errors import ConfigError, check_choice, check_count, check_positive

REDUCTIONS = ("sum", "mean")


@final
@dataclass(frozen=True)
class TrainingLoss:
    r"""How a model was trained: loss = factor * error + beta * divergence, each reduced somehow.

    With E the sum over an input's D values of (x - x_hat)^2 ("gaussian") or |x - x_hat|
    ("laplace"), and K the divergence in nats, an input's share of the loss is a E + b K, with

        a = factor * (1/D if pixels="mean") * (1/B if error_batch="mean"),
        b = beta * (1/d if latents="mean") * (1/B if divergence_batch="mean").

    Divided by b that is minus an evidence lower bound where E a/b is minus a log density but for
    a constant: the normal one of variance b / (2a), or the Laplace one of scale b / a, whose
    standard deviation is sqrt(2) b / a.

    Give it as `rv.wrap(..., likelihood="gaussian", stddev=TrainingLoss(...))`. The error is that
    of values in the model's unit.

    Args:
        factor: Before the error: 0.5 for half squared errors, a weight of the reconstruction.
        beta: Before the divergence.
        pixels: Whether the error of an input is a "sum" or a "mean" over its values;
            `torch.nn.MSELoss()` is "mean".
        latents: Whether the divergence is a "sum" or a "mean" over the latents.
        error_batch: Whether the error is a "sum" or a "mean" over the batch.
        divergence_batch: Whether the divergence is.
        batch_size: B; needed where only one of the two is a mean over the batch.

    Raises:
        RangeError: A factor or beta that is not positive.
        UnknownNameError: A reduction that is neither "sum" nor "mean".
        ConfigError: Two reductions over the batch that differ, without its size.

    References:
        Higgins et al., 2017 (beta); Rybkin et al., 2021, Section 3 (beta as a variance).

    Examples:
        >>> from robustvae.models import TrainingLoss
        >>> TrainingLoss(pixels="sum", factor=0.5, beta=4.0).stddev(784, 16)
        2.0
        >>> round(TrainingLoss(beta=0.01).stddev(784, 16), 4)
        1.9799
    """

    factor: float = 1.0
    beta: float = 1.0
    pixels: str = "mean"
    latents: str = "sum"
    error_batch: str = "mean"
    divergence_batch: str = "mean"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_positive(self.factor, "factor")
        check_positive(self.beta, "beta")
        for name in ("pixels", "latents", "error_batch", "divergence_batch"):
            check_choice(name, getattr(self, name), REDUCTIONS)
        if self.batch_size is not None:
            check_count(self.batch_size, "batch_size")
        elif self.error_batch != self.divergence_batch:
            raise ConfigError(
                f"batch_size must be a whole number where error_batch={self.error_batch!r} and "
                f"divergence_batch={self.divergence_batch!r} differ, got None: give the size of "
                "the training batches"
            )

    def stddev(self, values: int, latents: int, likelihood: str = "gaussian") -> float:
        """The standard deviation that the loss implies, in the unit of the values.

        Args:
            values: D, numbers of an input.
            latents: d, numbers of a code.
            likelihood: "gaussian" for squared errors, "laplace" for absolute ones.

        Raises:
            UnknownNameError: Any other likelihood.
        """
        check_choice("likelihood", likelihood, ("gaussian", "laplace"))
        batch = self.batch_size or 1
        error = self.factor / (values if self.pixels == "mean" else 1)
        error /= batch if self.error_batch == "mean" else 1
        divergence = self.beta / (latents if self.latents == "mean" else 1)
        divergence /= batch if self.divergence_batch == "mean" else 1
        ratio = divergence / error
        return math.sqrt(ratio / 2) if likelihood == "gaussian" else math.sqrt(2) * ratio
