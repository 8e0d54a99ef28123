"""Latents from the robust posterior, which knows that the image may have been moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from robustvae.defences.defence import in_chunks
from robustvae.defences.targets import RobustTarget
from robustvae.errors import check_choice, check_count, check_positive
from robustvae.mcmc import implicit, mode_search
from robustvae.models.base import VAE


@final
@dataclass(frozen=True)
class RobustPosterior:
    """The mode of the robust posterior: the best code for the best image within the ball.

    Every candidate code is judged against the image in the ball around the input that suits it
    best, so no attack within the ball can make the clean code a worse explanation than it was.
    It does not keep other codes from becoming as good. The radius is the defender's guess,
    never told per image; too small a guess protects less than too large a one.

    Args:
        norm: "linf" or "l2".
        radius: Radius of the ball, in pixel units.
        steps: Gradient evaluations an image, shared by the starts.
        start: "zero" climbs from the origin, which no attack can move, "mean" from the
            encoder's mean, "both" from each with half the steps and keeps the better end.
        rate: First step length of Adam, in latent units.
        gradient: How an attack sees through it: "unrolled" differentiates the search itself,
            "implicit" the mode (see `robustvae.mcmc.implicit`).
        chunk: Images run at once.

    Raises:
        RangeError: A setting that is not positive.
        UnknownNameError: An unknown `norm`, `start` or `gradient`.

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> defence = rv.RobustPosterior(norm="linf", radius=0.2, steps=4)
        >>> defence(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    norm: Literal["linf", "l2"] = "linf"
    radius: float = 0.2
    steps: int = 50
    start: Literal["mean", "zero", "both"] = "zero"
    rate: float = 0.2
    gradient: Literal["unrolled", "implicit"] = "unrolled"
    chunk: int = 100

    def __post_init__(self) -> None:
        """Refuse settings that make no search."""
        check_choice("norm", self.norm, ("linf", "l2"))
        check_choice("start", self.start, ("mean", "zero", "both"))
        check_choice("gradient", self.gradient, ("unrolled", "implicit"))
        check_positive(self.radius, "radius")
        check_positive(self.rate, "rate")
        check_count(self.steps, "steps", least=2 if self.start == "both" else 1)
        check_count(self.chunk, "chunk")

    @property
    def gradients(self) -> int:
        """Gradient evaluations spent on each image."""
        return self.steps

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool) -> Tensor:
            target = RobustTarget(vae, part, self.norm, self.radius)
            mean = vae.encode(part).mean
            starts = [mean] if self.start == "mean" else [torch.zeros_like(mean)]
            if self.start == "both":
                starts.append(mean)
            steps = self.steps // len(starts)
            unrolled = graph and self.gradient == "unrolled"
            first, *others = [
                mode_search(target, z, steps=steps, rate=self.rate, graph=unrolled) for z in starts
            ]
            best = first.z
            for other in others:
                higher = other.log_density > first.log_density
                best = torch.where(higher.unsqueeze(1), other.z, best)
            return implicit(target, best) if graph and not unrolled else best

        return in_chunks(read, vae, x, self.chunk)
