"""What a defense is, and how the costly ones run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robustvae.errors import check_images, check_type
from robustvae.models.base import VAE, check_weights, frozen
from robustvae.models.layout import channels_last
from robustvae.registry import family_base


@family_base("defense")
@runtime_checkable
class Defense(Protocol):
    """Any way to read a latent off an image: `(vae, x, *, generator) -> z`.

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


def in_chunks(read: Callable[[Tensor, bool], Tensor], vae: VAE, x: Tensor, chunk: int) -> Tensor:
    """Read latents off `x` by `read(images, graph)`, `chunk` rows at a time, weights frozen.

    A graph is kept only where `x` requires a gradient and gradients are on.

    Returns:
        Latents, (B, d).

    Raises:
        RobustVAEError: What `ready` refuses.
    """
    with ready(vae, x):
        graph = torch.is_grad_enabled() and x.requires_grad
        with torch.set_grad_enabled(graph):
            return torch.cat([read(part, graph) for part in x.split(chunk)])
