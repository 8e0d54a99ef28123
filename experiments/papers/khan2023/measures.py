"""What khan2023/geometry measures of one model: scores of its pullback metric, steps, attacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from robustvae.attacks import Attack, LatentShift, MaximumDamage
from robustvae.defenses import Victim
from robustvae.geometry import Geometry, pullback, step_curves
from robustvae.metrics import kl_to_standard_normal, mean_stderr
from robustvae.models import VAE, checkpoint
from robustvae.perturb import Ball, OneShot, ProjectedAscent
from robustvae.seeding import randn, shard_generator

Scale = Literal["unit", "eigenvalue"]

PLAIN, MIXUP, PLANE = "beta 1", "mixup, beta 1", "beta 1, two latent coordinates"
SHOWN = ("beta 0.01", "beta 0.1", PLAIN, "beta 10", MIXUP)
DISPLAYED = (0.5223, 0.7443)
RADII = (*DISPLAYED, 2.0)
STEPS: dict[Scale, tuple[float, ...]] = {
    "unit": tuple(10 ** (-1 + 2 * i / 39) for i in range(40)),
    "eigenvalue": tuple(10 ** (-2 + 3 * i / 39) for i in range(40)),
}
ONE_SHOT, RANDOM = "one shot", "random direction"
CLIMB, CLIMB_OUTPUT = "projected ascent, same score", "projected ascent, output"


@final
@dataclass(frozen=True)
class Spread:
    """Numbers of one kind, one for each image, and what they come to.

    Attributes:
        mean: Their mean.
        low: Lower end of its 95 % interval, mean - 1.96 standard errors over the images.
        high: Upper end.
        stddev: Of the numbers.
        values: The numbers, to 5 digits.
    """

    mean: float
    low: float
    high: float
    stddev: float
    values: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, numbers: Tensor) -> Spread:
        """The spread of (B,) numbers."""
        mean, stderr = mean_stderr(numbers)
        return cls(
            mean,
            mean - 1.96 * stderr,
            mean + 1.96 * stderr,
            stderr * len(numbers) ** 0.5,
            short(numbers, 5),
        )

    def __str__(self) -> str:
        """Mean and half the interval."""
        return f"{self.mean:.3g} ± {self.high - self.mean:.2g}"


@final
@dataclass(frozen=True)
class Curve:
    """Means over the images along one eigendirection, at each step of `STEPS[scale]`.

    Attributes:
        scale: "unit" for x +- s v, "eigenvalue" for x +- s l v as printed.
        box: Whether perturbed images were clipped to [0, 1].
        direction: 1 for the top one.
        error: Mean squared error a pixel, image to reconstruction of the perturbed image.
        stderr: Of `error`, over the images.
        displacement: ||mu(x + d) - mu(x)||.
    """

    scale: Scale
    box: bool
    direction: int
    error: tuple[float, ...]
    stderr: tuple[float, ...]
    displacement: tuple[float, ...]


@final
@dataclass(frozen=True)
class Damage:
    """What attacks of one l2 radius reach; a mean over the images each.

    Attributes:
        radius: In pixel units.
        box: Whether attacked images were kept in [0, 1].
        attack: Its name.
        queries: Passes through the encoder and back that it spent on an image.
        latent: 2-Wasserstein distance that the posterior moved.
        output: 2-norm by which the reconstruction moved, in pixel units.
        latent_share: `latent` by that of projected ascent on the same score, image by image.
        output_share: `output` by that of projected ascent on the output, image by image.
    """

    radius: float
    box: bool
    attack: str
    queries: int
    latent: Spread
    output: Spread
    latent_share: Spread
    output_share: Spread


@final
@dataclass(frozen=True)
class Measured:
    """One model.

    Attributes:
        name: "beta ..." or `MIXUP`.
        beta: Of its objective.
        sha256: Of its weights.
        error: Mean squared error of its reconstructions, a pixel.
        kl: KL from posterior to prior, in nats.
        active: Latent coordinates whose mean varies by more than 0.01 over the images.
        scores: By name.
        curves: Along the top five directions.
        damage: Of attacks, for the models of `SHOWN`.
    """

    name: str
    beta: float
    sha256: str | None
    error: float
    kl: float
    active: int
    scores: dict[str, Spread]
    curves: tuple[Curve, ...]
    damage: tuple[Damage, ...]

    def curve(self, scale: Scale, box: bool, direction: int = 1) -> Curve:
        """One of the curves."""
        wanted = (scale, box, direction)
        return next(c for c in self.curves if (c.scale, c.box, c.direction) == wanted)

    def by_ball(self) -> dict[tuple[float, bool], dict[str, Damage]]:
        """`damage` by radius and box, then by attack."""
        found: dict[tuple[float, bool], dict[str, Damage]] = {}
        for damage in self.damage:
            found.setdefault((damage.radius, damage.box), {})[damage.attack] = damage
        return found


def measure(
    name: str,
    beta: float,
    vae: VAE,
    x: Tensor,
    *,
    attacked: int,
    ascent: ProjectedAscent,
    seed: int,
) -> Measured:
    """All that is measured of one model.

    Args:
        name: Of the model; those of `SHOWN` are attacked.
        beta: Of its objective.
        vae: The model.
        x: Images, (B, C, H, W).
        attacked: How many of them are attacked.
        ascent: What one shot is held against.
        seed: Of the attacks.
    """
    geometry = pullback(vae, x)
    with torch.no_grad():
        q = vae.encode(x)
        error = (vae.decode(q.mean).mean - x).square().mean()
    return Measured(
        name,
        beta,
        checkpoint.weights_sha256(vae),
        float(error),
        float(kl_to_standard_normal(q.mean, q.stddev).mean()),
        int((q.mean.var(0) > 0.01).sum()),
        {key: Spread.of(value) for key, value in scores_of(vae, x, geometry).items()},
        tuple(curves_of(vae, x, geometry)),
        tuple(damage_of(vae, x[:attacked], ascent, seed)) if name in SHOWN else (),
    )


def scores_of(vae: VAE, x: Tensor, geometry: Geometry) -> dict[str, Tensor]:
    """Scores of the pullback metric at each image, (B,)."""
    spread = pullback(vae, x, part="std", count=1)
    return {
        "spectral radius": geometry.spectral_radius,
        'entropy, "max"': geometry.entropy("max"),
        'entropy, "trace"': geometry.entropy("trace"),
        "entropy, None": geometry.entropy(None),
        "std term's share of the trace": spread.eigenvalues.sum(1) / geometry.eigenvalues.sum(1),
        "spectral radius, Riemannian": pullback(vae, x, "riemannian", count=1).spectral_radius,
    }


def curves_of(vae: VAE, x: Tensor, geometry: Geometry) -> Iterator[Curve]:
    """Steps along the top five directions, on both grids, with and without clipping."""
    for scale, steps in STEPS.items():
        for box in (False, True):
            found = step_curves(vae, x, geometry, steps=steps, box=box, scale=scale)
            for i in range(found.error.shape[1]):
                error = found.error[:, i]
                yield Curve(
                    scale,
                    box,
                    i + 1,
                    short(error.mean(0), 4),
                    short(error.std(0) / len(x) ** 0.5, 2),
                    short(found.displacement[:, i].mean(0), 4),
                )


def damage_of(vae: VAE, x: Tensor, ascent: ProjectedAscent, seed: int) -> Iterator[Damage]:
    """The one-shot eigen attack, projected ascent and noise of the same size."""
    victim, moved = Victim(vae), LatentShift("wasserstein2")
    for radius in RADII:
        for ball in (Ball("l2", radius), Ball("l2", radius).free()):
            noise = shard_generator(seed, 0, f"damage {radius:g} {ball.box}")
            one_shot = Attack(moved, OneShot(), ball)
            shift = one_shot(victim, x, generator=noise)
            climb = Attack(moved, ascent, ball)(victim, x, generator=noise)
            damage = Attack(MaximumDamage(), ascent, ball)(victim, x, generator=noise)
            direction = randn(*x.shape, like=x, generator=noise)
            random = ball.project(x, x + 1e3 * radius * direction)
            found = {
                ONE_SHOT: (shift.x_adv, int(shift.queries[0])),
                CLIMB: (climb.x_adv, int(climb.queries[0])),
                CLIMB_OUTPUT: (damage.x_adv, int(damage.queries[0])),
                RANDOM: (random, 0),
            }
            latent = {
                key: one_shot.score(victim, x, y, generator=noise).clamp_min(0).sqrt()
                for key, (y, _) in found.items()
            }
            output = {key: _moved(vae, x, y) for key, (y, _) in found.items()}
            for key, (_, queries) in found.items():
                yield Damage(
                    radius,
                    ball.box,
                    key,
                    queries,
                    Spread.of(latent[key]),
                    Spread.of(output[key]),
                    Spread.of(latent[key] / latent[CLIMB]),
                    Spread.of(output[key] / output[CLIMB_OUTPUT]),
                )


def short(numbers: Tensor, digits: int) -> tuple[float, ...]:
    """`numbers` to so many digits."""
    return tuple(float(f"{number:.{digits}g}") for number in numbers.tolist())


def _moved(vae: VAE, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        pair = [vae.decode(vae.encode(each).mean).mean for each in (x, y)]
    return (pair[1] - pair[0]).flatten(1).norm(dim=1)
