"""What a defense is, and how the costly ones run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.errors import check_images, check_type
from robustvae.models.base import VAE, check_weights, frozen
from robustvae.models.layout import channels_last
from robustvae.registry import family_base
from robustvae.seeding import RowGenerator, for_rows


@family_base("defense")
@runtime_checkable
class Defense(Protocol):
    """Any way to read a latent off an image: `(vae, x, *, generator) -> z`.

    What it may say of itself, as attributes, and what is assumed where it does not (ask the
    functions of these names): `is_random`, whether two calls on one image may differ (they may);
    `reads_encoder_mean`, whether what it reads has the encoder's mean as its mean (it has not);
    `cost`, a `Cost` (unknown); and as a method `target(vae, x)`, the function from latents, (B, d),
    to log densities, (B,), whose mode it looks for (it looks for none; ask `seeks_mode`). Attacks
    by code and by the implicit gradient need that target.

    Args:
        vae: The model.
        x: Images in [0, 1], (B, C, H, W).
        generator: Spent by whatever is random.

    Returns:
        Latents, (B, d). Differentiable in `x` where it requires a gradient.
    """

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Read the latents of `x`."""
        ...


@final
@dataclass(frozen=True)
class Cost:
    """What reading the latent of one image takes.

    Attributes:
        gradients: Gradient evaluations of the log joint.
        forwards: Passes through encoder or decoder besides those.
    """

    gradients: int = 0
    forwards: int = 1

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(self.gradients + other.gradients, self.forwards + other.forwards)

    def times(self, count: int) -> Cost:
        """So many in a row."""
        return Cost(self.gradients * count, self.forwards * count)


@checked()
def is_random(defense: object) -> bool:
    """Whether two calls on one image may differ; true of a defense that does not say.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.defenses import is_random
        >>> is_random(rv.PosteriorMean()), is_random(rv.PosteriorSample())
        (False, True)
    """
    return bool(getattr(defense, "is_random", True))


@checked()
def reads_encoder_mean(defense: object) -> bool:
    """Whether the latent's mean is the encoder's mean; false of a defense that does not say.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.defenses import reads_encoder_mean
        >>> reads_encoder_mean(rv.PosteriorSample()), reads_encoder_mean(rv.PosteriorMode())
        (True, False)
    """
    return bool(getattr(defense, "reads_encoder_mean", False))


@checked()
def seeks_mode(defense: object) -> bool:
    """Whether the latent is a mode of a density that the defense names by its method `target`.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.defenses import seeks_mode
        >>> seeks_mode(rv.RobustPosterior()), seeks_mode(rv.HMC())
        (True, False)
    """
    return callable(getattr(defense, "target", None))


def is_posterior_mean(defense: object) -> bool:
    """Whether the latent is the encoder's mean itself: no defense at all."""
    return reads_encoder_mean(defense) and not is_random(defense)


@checked()
def cost(defense: object) -> Cost | None:
    """What one image takes; None of a defense that does not say.

    Examples:
        >>> import robustvae as rv
        >>> from robustvae.defenses import cost
        >>> cost(rv.PosteriorMode(steps=50)).gradients
        50
    """
    statement = getattr(defense, "cost", None)
    return statement if isinstance(statement, Cost) else None


@contextlib.contextmanager
def ready(vae: VAE, x: Tensor) -> Iterator[None]:
    """Within: weights frozen, and evaluation mode; afterwards all as it was.

    The range of the pixels is not looked at: an attack without a box may leave it.

    Raises:
        DtypeError: No model, or images not of its floating type.
        ShapeError: Not (B, *image_shape) with B at least 1.
        NonFiniteError: A NaN or an infinity in the images or the weights.
    """
    check_type(vae, "vae", VAE)
    vae.check(x)
    check_images(x, vae.image_shape, low=None, high=None)
    check_weights(vae)
    with frozen(vae), channels_last(vae):
        yield


CHAINS = 4
"""Rows that a batch of chains has at least. A matrix product rounds otherwise for one, two or three
rows than for more (measured with MKL on a CPU), and a chain multiplies such a difference until
another proposal is accepted: alone an input would end elsewhere than among others."""


def in_chunks(
    read: Callable[[Tensor, bool, torch.Generator], Tensor],
    vae: VAE,
    x: Tensor,
    chunk: int,
    generator: torch.Generator,
    *,
    least: int = 1,
) -> Tensor:
    """Read latents off `x` by `read(images, graph, generator)`, `chunk` rows at a time.

    Weights are frozen meanwhile. A graph is kept only where `x` requires a gradient and gradients
    are on.

    Args:
        read: Latents, (n, d), of n images.
        vae: The model.
        x: Images, (B, C, H, W).
        chunk: Most rows at once.
        generator: Whose part for its rows each chunk is given.
        least: Rows below which a chunk with streams of its own is filled up by copies: see
            `CHAINS`.

    Returns:
        Latents, (B, d).

    Raises:
        RobustVAEError: Raised by `ready`.
    """
    with ready(vae, x):
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.set_grad_enabled(graph):
            return torch.cat(
                [
                    _filled(
                        read, x, list(range(i, min(i + chunk, len(x)))), graph, generator, least
                    )
                    for i in range(0, len(x), chunk)
                ]
            )


def _filled(
    read: Callable[[Tensor, bool, torch.Generator], Tensor],
    x: Tensor,
    rows: list[int],
    graph: bool,
    generator: torch.Generator,
    least: int,
) -> Tensor:
    """What is read off some rows; the same to the last bit for each row, however many they are."""
    count = len(rows)
    if isinstance(generator, RowGenerator):
        rows = rows + rows[-1:] * (least - count)
    part = x if rows == list(range(len(x))) else x[rows]
    return read(part, graph, for_rows(generator, rows))[:count]
