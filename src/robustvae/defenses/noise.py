"""Noise on the input before it is read: the defense that smoothing certifies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from robustvae.defenses.defense import Cost, Defense, cost, ready
from robustvae.defenses.posterior import PosteriorSample
from robustvae.errors import UnsupportedError, check_count, check_positive, check_type
from robustvae.models.base import VAE
from robustvae.registry import build_fields, register
from robustvae.seeding import randn, split

GRID = 2.0**-20
"""Spacing of the values that a noisy input can take, in units of the pixel range.

Sums on this grid are exact in float32 below 16, so no last bit of a noisy input betrays the clean
one [Voracek & Hein 2023]; above 16 lies no value that a draw of useful noise reaches.
"""


@register("defense", "input-noise")
@final
@dataclass(frozen=True)
class InputNoise:
    """Normal noise on the input, then another defense: what `certify` by smoothing speaks of.

    The victim reads u = q(x) + q(s n), n standard normal, q rounding to multiples of 2^-20: both
    terms and their sum are exact. The noise is drawn in float64, whose normals have no visible end,
    and anew for every row and call; it must be unknown to an attacker. Gradients pass through it.

    Args:
        stddev: s, in units of the pixel range; one number for all inputs, chosen before any of
            them is seen.
        defense: What reads the noisy image; a draw of the encoder's posterior by default. A
            purifier before the model (denoised smoothing) is `Refined(Redraw(...), ...)`.
        votes: How many independent draws, noise and all, a `Victim` with this defense averages for
            one output.
        clip: Whether noisy values are clipped to [0, 1] before they are read.

    Raises:
        RangeError: A spread or count that is not positive.
        UnsupportedError: When called, with images of less than 24 bits of precision.

    References:
        Cohen et al., 2019; Salman et al., 2020 (denoised smoothing); Voracek & Hein, 2023 (why
        the noise lies on a grid).

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> smooth = rv.Victim(vae, rv.InputNoise(stddev=0.25))
        >>> smooth.reconstruct(torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 1, 4, 4])
    """

    stddev: float
    defense: Defense = field(default_factory=PosteriorSample)
    votes: int = 1
    clip: bool = False

    is_random: ClassVar[bool] = True
    reads_encoder_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_positive(self.stddev, "stddev")
        build_fields(self, defense="defense")
        check_count(self.votes, "votes")
        check_type(self.clip, "clip", bool)

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image, all votes together."""
        return self.votes * int(getattr(self.defense, "gradients", 0))

    @property
    def cost(self) -> Cost | None:
        """What one image takes, all votes together; None where the inner defense does not say."""
        base_cost = cost(self.defense)
        return None if base_cost is None else base_cost.times(self.votes)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of one draw for each image, (B, C, H, W)."""
        check_continuous(vae)
        with ready(vae, x):
            noisy = self.noisy(x, generator=generator)
            return self.defense(vae, noisy, generator=apart(generator))

    def noisy(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """The images as the victim reads them, (B, C, H, W), on the grid before any clipping."""
        if x.dtype not in (torch.float32, torch.float64):
            raise UnsupportedError(
                f"input noise needs float32 or float64 images, got {x.dtype}: use x.float()"
            )
        wide = torch.empty(0, dtype=torch.float64, device=x.device)
        noise = randn(*x.shape, like=wide, generator=generator).mul_(self.stddev / GRID).round_()
        # rows that are views of one image, as in smoothing, are rounded once
        clean = x.detach()[:1] if x.stride(0) == 0 else x.detach()
        ticks = (clean.double() / GRID).round_()
        read = noise.add_(ticks).mul_(GRID).to(x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            read = read + (x - x.detach())  # the identity to gradients, exactly 0 to values
        return read.clamp(0, 1) if self.clip else read


def apart(generator: torch.Generator) -> torch.Generator:
    """What a defense behind the noise draws from, after the noise was drawn.

    From the generator of the noise itself it could draw the noise again, and so know the input.
    """
    (own,) = split(generator, 1)
    return own


def check_continuous(vae: VAE) -> None:
    """Raise unless the values that a model reads are continuous, so that noise can be added.

    Raises:
        UnsupportedError: The model's `InputSpace` is discrete.
    """
    space = getattr(vae, "space", None)
    if space is not None and space.discrete:
        raise UnsupportedError(
            "input noise and smoothing need continuous values, got a discrete InputSpace: normal "
            "noise makes fractions of counts, which do not occur; judge counts by attacks in "
            "rv.Ball('l0', k), or declare discrete=False"
        )
