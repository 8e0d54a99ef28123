"""Baselines: transform the image first, then read it; and one defense before another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from robustvae.data.changes import check_quality, jpeg
from robustvae.defenses.defense import Cost, Defense, cost, is_random
from robustvae.defenses.posterior import PosteriorMean
from robustvae.errors import RangeError, check_count, check_images, check_probability, check_type
from robustvae.models.base import VAE, evaluating
from robustvae.registry import build_fields, family_base, register


@family_base("refinement")
@runtime_checkable
class Refinement(Protocol):
    """Any way to clean an image before it is read: images to images, (B, C, H, W)."""

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Refine images in [0, 1], (B, C, H, W)."""
        ...


@register("defense", "refined")
@final
@dataclass(frozen=True)
class Refined:
    """Refine the image, then read it by another defense.

    Refinements without a useful derivative pass gradients straight through, so that an attack
    that knows them is not handed a gradient of 0.

    Args:
        refine: What is done to the image: `Threshold`, `BitDepth`, `Median`, `JPEG`, `Redraw`.
        defense: What reads the refined image.

    References:
        Xu et al., 2018 (bit depth, median); Athalye et al., 2018 (straight-through gradients).

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defenses import Refined, Threshold
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> Refined(Threshold(0.5))(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    refine: Refinement
    defense: Defense = field(default_factory=PosteriorMean)

    reads_encoder_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Make the two of their specs."""
        build_fields(self, refine="refinement", defense="defense")

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image, by both together."""
        return int(getattr(self.refine, "gradients", 0) + getattr(self.defense, "gradients", 0))

    @property
    def is_random(self) -> bool:
        """Whether two calls on one image may differ."""
        return is_random(self.refine) or is_random(self.defense)

    @property
    def cost(self) -> Cost | None:
        """What one image takes; None where one of the two does not say."""
        parts = cost(self.refine), cost(self.defense)
        return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""
        check_type(vae, "vae", VAE)
        check_images(x, vae.image_shape, low=None, high=None)
        with evaluating(vae):
            return self.defense(vae, self.refine(vae, x, generator=generator), generator=generator)


@register("refinement", "threshold")
@final
@dataclass(frozen=True)
class Threshold:
    """Pixels above `level` become 1, the others 0; gradients pass straight through.

    Args:
        level: In (0, 1).
    """

    level: float = 0.5

    is_random: ClassVar[bool] = False
    cost: ClassVar[Cost] = Cost(0, 0)

    def __post_init__(self) -> None:
        """Validate the level."""
        check_probability(self.level, "level")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Black and white images, (B, C, H, W)."""
        return _straight_through(x, (x > self.level).to(x.dtype))


@register("refinement", "bit-depth")
@final
@dataclass(frozen=True)
class BitDepth:
    """Round pixels to 2^bits levels; gradients pass straight through.

    Args:
        bits: At least 1.
    """

    bits: int = 3

    is_random: ClassVar[bool] = False
    cost: ClassVar[Cost] = Cost(0, 0)

    def __post_init__(self) -> None:
        """Validate the depth."""
        check_count(self.bits, "bits")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Rounded images, (B, C, H, W)."""
        levels = 2**self.bits - 1
        return _straight_through(x, (x * levels).round() / levels)


@register("refinement", "median")
@final
@dataclass(frozen=True)
class Median:
    """The median of each window; edges are reflected.

    Args:
        size: Odd side of the window in pixels.
    """

    size: int = 3

    is_random: ClassVar[bool] = False
    cost: ClassVar[Cost] = Cost(0, 0)

    def __post_init__(self) -> None:
        """Validate the size of the window."""
        check_count(self.size, "size")
        if self.size % 2 == 0:
            raise RangeError(f"size must be odd, got {self.size}")

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Filtered images, (B, C, H, W)."""
        padded = functional.pad(x, [self.size // 2] * 4, mode="reflect")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(4).median(4).values


@register("refinement", "jpeg")
@final
@dataclass(frozen=True)
class JPEG:
    """Compress and decompress, channel by channel; gradients pass straight through.

    Args:
        quality: From 1 to 95.
    """

    quality: int = 75

    is_random: ClassVar[bool] = False
    cost: ClassVar[Cost] = Cost(0, 0)

    def __post_init__(self) -> None:
        """Validate the quality."""
        check_quality(self.quality)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Decompressed images, (B, C, H, W)."""
        planes = x.detach().flatten(0, 1).unsqueeze(1)
        return _straight_through(x, jpeg(planes, self.quality).view_as(x))


@register("refinement", "redraw")
@final
@dataclass(frozen=True)
class Redraw:
    """Reconstruct the image by a defense: with `Refined`, one defense before another.

    Args:
        defense: Reads the latent that is decoded.
    """

    defense: Defense = field(default_factory=PosteriorMean)

    def __post_init__(self) -> None:
        """Make the defense of its spec."""
        build_fields(self, defense="defense")

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image."""
        return int(getattr(self.defense, "gradients", 0))

    @property
    def is_random(self) -> bool:
        """Whether two calls on one image may differ."""
        return is_random(self.defense)

    @property
    def cost(self) -> Cost | None:
        """What one image takes; None where the defense does not say."""
        base_cost = cost(self.defense)
        return None if base_cost is None else base_cost + Cost(0, 1)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Reconstructions, (B, C, H, W)."""
        check_type(vae, "vae", VAE)
        with evaluating(vae):
            return vae.decode(self.defense(vae, x, generator=generator)).mean


def _straight_through(x: Tensor, refined: Tensor) -> Tensor:
    return x + (refined - x).detach() if x.requires_grad else refined
