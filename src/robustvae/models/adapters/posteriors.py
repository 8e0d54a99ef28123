"""Posteriors that can be drawn from and have a center, but no density or spread in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from robustvae.errors import UnsupportedError
from robustvae.models.likelihoods import Gaussian
from robustvae.seeding import draw, seeded, split

NO_DENSITY = (
    "the posterior of this model is {kind}: it can be drawn from, and its {what} is not known in "
    "closed form; use the mean (PosteriorMean) or draws (PosteriorSample)"
)


@final
@dataclass(frozen=True, eq=False)
class FlowPosterior:
    """Draws of a Gaussian, (B, d), pushed through a map.

    Args:
        base: What is drawn from.
        push: Codes (n, d) to codes (n, d).
    """

    base: Gaussian
    push: Callable[[Tensor], Tensor]

    @property
    def mean(self) -> Tensor:
        """The map of the Gaussian's mean: the code that models of this kind read off an input."""
        return self.push(self.base.mean)

    @property
    def stddev(self) -> Tensor:
        """Raise an error: it is not known in closed form.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(NO_DENSITY.format(kind="a flow", what="standard deviation"))

    def log_prob(self, value: Tensor) -> Tensor:
        """Raise an error: it is not known in closed form.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(NO_DENSITY.format(kind="a flow", what="density"))

    def draw(self, shape: tuple[int, ...] = (), *, generator: Any) -> Tensor:
        """Draws, `shape` + the mean's shape."""
        z = self.base.draw(shape, generator=generator)
        return self.push(z.reshape(-1, *self.base.mean.shape[1:])).reshape(z.shape)


@final
@dataclass(frozen=True, eq=False)
class TransformedPosterior:
    """Draws of a distribution, (B, ...), pushed through transforms of `torch.distributions`.

    Args:
        base: A distribution with a mean.
        transforms: What its draws go through, in this order.
    """

    base: Any
    transforms: tuple[Any, ...]

    def _through(self, z: Tensor) -> Tensor:
        for transform in self.transforms:
            z = transform(z)
        return z

    @property
    def mean(self) -> Tensor:
        """The image of the base's mean: of monotone transforms of a normal one, the median."""
        return self._through(self.base.mean)

    @property
    def stddev(self) -> Tensor:
        """Raise an error: it is not known in closed form.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(NO_DENSITY.format(kind="transformed", what="standard deviation"))

    def log_prob(self, value: Tensor) -> Tensor:
        """Raise an error: it is not known for each element.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(NO_DENSITY.format(kind="transformed", what="density"))

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Draws, `shape` + the mean's shape."""
        return self._through(draw(self.base, shape, generator=generator))


@final
@dataclass(frozen=True, eq=False)
class SampledPosterior:
    """Draws of a stranger's object that has `mode()`, and `rsample()` or `sample()`.

    Args:
        base: The object.
    """

    base: Any

    @property
    def mean(self) -> Tensor:
        """The mode, which stands for the mean."""
        mode: Tensor = self.base.mode()
        return mode

    @property
    def stddev(self) -> Tensor:
        """Raise an error: it is not known.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(NO_DENSITY.format(kind="samples", what="standard deviation"))

    def log_prob(self, value: Tensor) -> Tensor:
        """Raise an error: it is not known.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(NO_DENSITY.format(kind="samples", what="density"))

    def draw(self, shape: tuple[int, ...] = (), *, generator: torch.Generator) -> Tensor:
        """Draws, `shape` + the mode's shape."""
        sample = getattr(self.base, "rsample", None) or self.base.sample
        count = torch.Size(shape).numel()
        # such a sampler reads the global generator: lend it ours and put its own back
        with seeded(split(generator, 1)[0].initial_seed()):
            draws = [sample() for _ in range(count)]
        return torch.stack(draws).reshape(*shape, *self.mean.shape)


def is_sampled(value: Any) -> bool:
    """Whether an object is drawn from, about a mode that it gives, and is not one of torch's."""
    if isinstance(value, Tensor | torch.distributions.Distribution):
        return False
    try:
        samplers = [getattr(value, name, None) for name in ("rsample", "sample")]
        return callable(getattr(value, "mode", None)) and any(map(callable, samplers))
    except Exception:  # a user's object may raise anything from a property
        return False


def known_form(output: Any) -> Any:
    """A user's posterior, in a form that has a center where its own has none.

    `Independent` is taken off; transformed distributions without a mean are read through their
    transforms, and objects with `mode()` alone by it. Everything else comes back as it is.
    """
    while isinstance(output, torch.distributions.Independent):
        output = output.base_dist
    if isinstance(output, torch.distributions.TransformedDistribution):
        try:
            output.mean  # noqa: B018
        except NotImplementedError:
            return TransformedPosterior(known_form(output.base_dist), tuple(output.transforms))
    return SampledPosterior(output) if is_sampled(output) else output
