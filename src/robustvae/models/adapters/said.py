"""The arguments of `wrap`, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from robustvae.data.coercion import as_images
from robustvae.data.space import InputSpace
from robustvae.errors import (
    ConfigError,
    ShapeError,
    check_choice,
    check_count,
    check_positive,
    check_sizes,
)
from robustvae.models.adapters.losses import TrainingLoss
from robustvae.models.adapters.reading import CodeReading, SpreadKind, Step

Returns = Literal["distribution", "mean_log_var", "mean_stddev", "mean_variance", "mean"]
KINDS: dict[str, SpreadKind] = {
    "mean_log_var": "log_var",
    "mean_stddev": "stddev",
    "mean_variance": "variance",
}
RETURNS = ("distribution", *KINDS, "mean")
LIKELIHOODS = ("bernoulli", "gaussian", "laplace")
OUTPUTS = ("logits", "mean", "probabilities")


@final
@dataclass(frozen=True)
class Said:
    """The arguments of `wrap`, checked."""

    latent: int | None
    image_shape: Any
    pixels: Any
    likelihood: str | None
    stddev: Any
    fit_on: Any
    prior: Any
    returns: str | None
    mean: Step | None
    spread: Step | None
    spread_kind: SpreadKind
    reconstruction: Step | None
    outputs: str | None
    output_only: bool
    adapter: Any

    def __post_init__(self) -> None:
        """Check what can be checked without the model."""
        if self.latent is not None:
            check_count(self.latent, "latent")
        if self.image_shape is not None:
            check_sizes(self.image_shape, "image_shape")
            if not self.image_shape:
                raise ShapeError("image_shape must have at least one number, got ()")
        for kind, value, options in (
            ("returns", self.returns, RETURNS),
            ("likelihood", self.likelihood, LIKELIHOODS),
            ("outputs", self.outputs, OUTPUTS),
        ):
            if value is not None:
                check_choice(kind, value, options)
        if self.likelihood in ("gaussian", "laplace") and self.stddev is None:
            raise ConfigError(
                f"likelihood={self.likelihood!r} needs a spread: give stddev=, a number in the "
                "model's unit, stddev='fit' with fit_on=inputs, or rv.models.TrainingLoss(...)"
            )
        if self.fits and self.fit_on is None:
            raise ConfigError("stddev='fit' needs inputs to fit on: give fit_on=x")
        if self.stddev is not None and not (self.fits or isinstance(self.stddev, TrainingLoss)):
            check_positive(self.stddev, "stddev")
        if self.stddev is not None and self.likelihood not in ("gaussian", "laplace"):
            raise ConfigError(
                "stddev belongs to likelihood='gaussian' or 'laplace', "
                f"got likelihood={self.likelihood!r}"
            )

    @property
    def fits(self) -> bool:
        """Whether the spread is to be fitted to inputs; an array compares element by element."""
        return isinstance(self.stddev, str) and self.stddev == "fit"

    @property
    def reading(self) -> CodeReading | None:
        """How codes are read, where that was said."""
        if self.mean is not None or self.spread is not None:
            spread = None if self.spread is None else (self.spread,)
            return CodeReading((0 if self.mean is None else self.mean,), spread, self.spread_kind)
        if self.returns in KINDS:
            return CodeReading((0,), (1,), KINDS[self.returns])
        if self.returns == "mean":
            return CodeReading(())
        return CodeReading() if self.returns == "distribution" else None

    def space(self, shape: Sequence[int]) -> InputSpace:
        """What the model reads."""
        return InputSpace.of(self.pixels, shape)


def tensor_of(given: Any) -> Tensor:
    """Inputs as one tensor, (B, ...)."""
    if isinstance(given, Tensor):
        return given.detach()
    return as_images(given).x


def shape_of(given: Any) -> tuple[int, ...]:
    """Shape of one of the inputs."""
    return tuple(tensor_of(given).shape[1:])
