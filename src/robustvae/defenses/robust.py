"""Latents from the robust posterior, which knows that the image may have been moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from robustvae.arguments import checked
from robustvae.defenses.climb import Climbing, Gradient, Method, Start, check_search, climb
from robustvae.defenses.defense import in_chunks
from robustvae.defenses.targets import RobustTarget
from robustvae.display import three_lines
from robustvae.errors import RangeError, ShapeError, check_choice, check_positive
from robustvae.metrics import mean_stderr
from robustvae.models.base import VAE, frozen
from robustvae.registry import register


@register("defense", "robust-posterior")
@final
@dataclass(frozen=True)
class RobustPosterior(Climbing):
    """The mode of the robust posterior: the best code for the best image within the ball.

    Every candidate code is judged against the image in the ball around the input that suits it
    best, so no attack within the ball can make the clean code a worse explanation than it was.
    It does not keep other codes from becoming as good. The radius is the defender's guess,
    never told per image; too small a guess protects less than too large a one.

    Args:
        norm: "linf" or "l2".
        radius: Radius of the ball, in pixel units.
        steps: Gradient evaluations an image, shared by the starts. Fifty are enough against
            attacks that do not see the search; through a search that has not converged, as after
            fifty steps of Adam, an attack moves its end: take a hundred or more.
        start: "zero" climbs from the prior's mean, which no attack can move (the origin; in a
            hierarchy the mean path from it), "mean" from the encoder's mean, "both" from each with
            half the steps and keeps the better end, "prior" as in `PosteriorMode`.
        rate: First step length of Adam, in latent units.
        gradient: How an attack sees through it: "unrolled" differentiates the search itself,
            "implicit" the mode (see `robustvae.mcmc.implicit`).
        chunk: Images run at once.
        method: "adam", "lbfgs" or "gauss-newton": see `PosteriorMode`. Gauss-Newton's matrix is
            that of the posterior of a fixed image.
        starts: How many draws of the prior, where `start` is that.

    Raises:
        RangeError: A setting that is not positive, or fewer steps than the starts need.
        UnknownNameError: An unknown `norm`, `start`, `gradient` or `method`.
        UnsupportedError: When called for a gradient, "unrolled" with another method than "adam".

    Examples:
        >>> import robustvae as rv, torch
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> defense = rv.RobustPosterior(norm="linf", radius=0.2, steps=4)
        >>> defense(vae, torch.rand(3, 1, 4, 4), generator=rv.generator(0)).shape
        torch.Size([3, 2])
    """

    norm: Literal["linf", "l2"] = "linf"
    radius: float = 0.2
    steps: int = 50
    start: Start = "zero"
    rate: float = 0.2
    gradient: Gradient = "unrolled"
    chunk: int = 100
    method: Method = "adam"
    starts: int = 10

    reads_encoder_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Validate the fields."""
        check_choice("norm", self.norm, ("linf", "l2"))
        check_choice("start", self.start, ("mean", "zero", "both", "prior"))
        check_positive(self.radius, "radius")
        check_search(self)

    def __call__(self, vae: VAE, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Latents, (B, d), of images in [0, 1], (B, C, H, W)."""

        def read(part: Tensor, graph: bool, generator: torch.Generator) -> Tensor:
            mean, target = vae.encode(part).mean, self.target(vae, part)
            return climb(self, vae, target, mean, graph=graph, generator=generator)

        return in_chunks(read, vae, x, self.chunk, generator)

    def target(self, vae: VAE, x: Tensor) -> RobustTarget:
        """The robust posterior of each of the images `x`, (B, C, H, W)."""
        return RobustTarget(vae, x, self.norm, self.radius)


@final
@three_lines()
@dataclass(frozen=True, repr=False)
class RadiusEstimate:
    """How large a perturbation explains that some images fit worse than clean ones.

    Attributes:
        radius: The least radius tried at which they fit as well, infinite where none was enough.
        radii: The radii tried, ascending.
        excess: Mean robust energy of the images minus that of the clean ones, in nats, at each.
        stderr: Standard error of each excess.
    """

    radius: float
    radii: tuple[float, ...]
    excess: tuple[float, ...]
    stderr: tuple[float, ...]


@checked(formula=True)
def estimate_radius(
    vae: VAE,
    x: Tensor,
    clean: Tensor,
    *,
    norm: Literal["linf", "l2"] = "linf",
    radii: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
    steps: int = 50,
    generator: torch.Generator,
) -> RadiusEstimate:
    """The least radius at which the excess energy of `x` is within two standard errors of 0.

    The energy is min over z of U_R(z; x). Perturbed images lie off the model's images and cost
    more than clean ones until the ball is as large as the perturbation.

    Warning:
        One number for all of `x`: where only some of them are perturbed, or by different sizes,
        it says what brings their mean down. An attacker who knows of it may spend less.

    Args:
        vae: The model.
        x: Images that may be perturbed, in [0, 1], (B, C, H, W), at least two.
        clean: Other images of the same kind that are not, (N, C, H, W), at least two.
        norm: "linf" or "l2".
        radii: Radii to try, in pixel units.
        steps: Gradient evaluations an image and radius.
        generator: Handed to the defense.

    Raises:
        RangeError: No radius, or one that is not positive.
        ShapeError: Fewer than two images on either side.

    Examples:
        >>> import robustvae as rv, torch
        >>> from robustvae.defenses import estimate_radius
        >>> vae = rv.models.create("vae", architecture="mlp", latent=2, image_shape=(1, 4, 4))
        >>> x = torch.rand(4, 1, 4, 4, generator=rv.generator(1))
        >>> estimate_radius(vae, x, x, radii=[0.1], steps=3, generator=rv.generator(0)).radius
        0.1
    """
    if not radii:
        raise RangeError("radii must hold at least one radius")
    if len(x) < 2 or len(clean) < 2:
        raise ShapeError(
            f"x and clean must hold at least two images each, got {len(x)} and {len(clean)}"
        )
    candidates = tuple(sorted(float(radius) for radius in radii))
    excess, stderr = [], []
    for radius in candidates:
        defense = RobustPosterior(norm, radius, steps)
        (near_mean, spread), (there, other) = (
            mean_stderr(_energy(vae, part, defense, generator)) for part in (x, clean)
        )
        excess.append(near_mean - there)
        stderr.append(math.hypot(spread, other))
    enough = [r for r, e, s in zip(candidates, excess, stderr, strict=True) if e <= 2 * s]
    return RadiusEstimate(min(enough, default=math.inf), candidates, tuple(excess), tuple(stderr))


def _energy(vae: VAE, x: Tensor, defense: RobustPosterior, generator: torch.Generator) -> Tensor:
    with torch.no_grad(), frozen(vae):
        parts = [
            RobustTarget(vae, part, defense.norm, defense.radius)(
                defense(vae, part, generator=generator)
            )
            for part in x.split(defense.chunk)
        ]
    return -torch.cat(parts)
