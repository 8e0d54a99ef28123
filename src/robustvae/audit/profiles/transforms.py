"""What happens to an image on its way: JPEG, resizing, blur, noise; gradients pass all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from robustvae.data.changes import blur, jpeg
from robustvae.errors import ConfigError, unknown
from robustvae.seeding import randn

Transform = Callable[..., Tensor]
"""`(x, *, generator) -> x`, images (B, C, H, W) in [0, 1]."""

KINDS = ("blur", "jpeg", "noise", "resize", "none")
STANDARD = ("jpeg:90", "jpeg:75", "jpeg:50", "resize:0.5", "blur:1", "noise:0.05")
"""Qualities of JPEG, a share of the side, pixels, and units of the range."""


def transform_of(spec: str) -> Transform:
    """The transform that "KIND:NUMBER" stands for.

    "jpeg:75" is a quality, "resize:0.5" scales down to that share and up again, "blur:1" is a
    Gaussian's spread in pixels, "noise:0.05" one of normal noise; "none" leaves images alone.

    Raises:
        UnknownNameError: Any other kind.
        ConfigError: No number, or one out of range.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.audit.profiles.transforms import transform_of
        >>> transform_of("resize:0.5")(torch.rand(2, 3, 8, 8), generator=rv.generator(0)).shape
        torch.Size([2, 3, 8, 8])
    """
    kind, _, text = spec.partition(":")
    if kind not in KINDS:
        raise unknown("transform", kind, KINDS)
    if kind == "none":
        return lambda x, *, generator: x
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"a transform is KIND:NUMBER, such as jpeg:75, got {spec!r}") from None
    largest = {"jpeg": 95.0, "resize": 1.0}.get(kind, 1e3)
    if not 0 < number <= largest or (kind == "jpeg" and number != int(number)):
        raise ConfigError(
            f"the number of {kind} must lie above 0 and up to {largest:g}, got {spec!r}"
        )
    return {"jpeg": _jpeg, "resize": _resize, "blur": _blur, "noise": _noise}[kind](number)


def transforms_of(specs: Sequence[str]) -> dict[str, Transform]:
    """Several transforms by their specs."""
    return {spec: transform_of(spec) for spec in specs}


def _jpeg(quality: float) -> Transform:
    def apply(x: Tensor, *, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            change = jpeg(x.detach(), int(quality)) - x.detach()
        return x + change  # straight through: a file has no gradient

    return apply


def _resize(share: float) -> Transform:
    def apply(x: Tensor, *, generator: torch.Generator) -> Tensor:
        height, width = x.shape[-2:]
        size = max(1, round(share * height)), max(1, round(share * width))
        small = functional.interpolate(x, size, mode="bilinear", antialias=True)
        return functional.interpolate(small, (height, width), mode="bilinear").clamp(0, 1)

    return apply


def _blur(sigma: float) -> Transform:
    return lambda x, *, generator: blur(x, sigma)


def _noise(stddev: float) -> Transform:
    return lambda x, *, generator: (
        x + stddev * randn(*x.shape, like=x, generator=generator)
    ).clamp(0, 1)
