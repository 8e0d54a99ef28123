"""How far each defense brings the reconstruction of an attacked image back to the clean one.

    python -m robustvae.studies.defense_table --model runs/mnist-conv28 --data mnist

The attack shifts the latent (symmetric KL) and does not know the defense. Measured is the squared
distance between the defended reconstruction of the attacked image and the undefended
reconstruction of the clean one. The robust modes are told the radius, half and twice the radius;
the last column attacks in another norm than they assume.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks import Attack, LatentShift
from robustvae.data import Images
from robustvae.defenses import (
    HMC,
    Defense,
    PosteriorMean,
    PosteriorMode,
    PosteriorSample,
    Refined,
    RobustPosterior,
    Threshold,
    Victim,
    estimate_radius,
)
from robustvae.errors import check_choice
from robustvae.metrics import mean_stderr
from robustvae.models.base import VAE
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import shard_generator
from robustvae.studies.kept import Keep, Values
from robustvae.studies.table import Row, Table, facts_of, from_command_line

RADII = (0.1, 0.2)
TRIED = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
ESTIMATED, GUESS = "robust mode, radius estimated", "that radius, in pixel units"
BALLS = (*(Ball("linf", radius) for radius in RADII), Ball("l2", 2.0))


@final
@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        images: Inputs.
        steps: Of the attack.
        restarts: Of the attack.
        effort: Share of each defense's gradients.
    """

    images: int
    steps: int
    restarts: int
    effort: float


SIZES = {
    "smoke": Size(8, 5, 1, 0.1),
    "laptop": Size(100, 50, 10, 1.0),
    "full": Size(500, 50, 10, 1.0),
}


def rows_of(radius: float, effort: float) -> dict[str, Defense]:
    """The defenses of one column, by name; the robust ones never know more than the radius."""

    def n(count: int) -> int:
        return max(2, round(count * effort))

    def restarted(radius: float) -> RobustPosterior:
        return RobustPosterior("linf", radius, max(20, n(200)), start="prior", rate=0.4)

    half, double = radius / 2, 2 * radius
    return {
        "undefended (posterior mean)": PosteriorMean(),
        "posterior sample": PosteriorSample(),
        "HMC": HMC(steps=n(26), step_size=0.5, mass="encoder"),
        "posterior mode": PosteriorMode(steps=n(50)),
        "threshold at 1/2, then posterior mean": Refined(Threshold(0.5)),
        "robust mode, radius right": RobustPosterior("linf", radius, steps=n(50)),
        "robust mode, half the radius": RobustPosterior("linf", half, steps=n(50)),
        "robust mode, twice the radius": RobustPosterior("linf", double, steps=n(50)),
        "robust mode, restarted, radius right": restarted(radius),
        "robust mode, restarted, half the radius": restarted(half),
        "robust mode, restarted, twice the radius": restarted(double),
        "robust HMC, radius right": HMC(steps=n(26), ball=Ball("linf", radius)),
        "robust mode, l2 2": RobustPosterior("l2", 2.0, steps=n(50)),
    }


def defense_table(
    vae: VAE,
    images: Images,
    *,
    size: str = "laptop",
    seed: int = 0,
    kept: Keep | None = None,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Run the study.

    Args:
        vae: The model.
        images: Where the inputs are sampled, class by class.
        size: "smoke", "laptop" or "full".
        seed: Of everything random.
        kept: Where finished parts are kept; None keeps nothing.
        progress: Told what has been done, a line at a time.

    Raises:
        UnknownNameError: Any other size.

    References:
        [Kuzina22] sections 4 and 5; the robust mode is this library's own.
    """
    check_choice("size", size, SIZES)
    plan, began = SIZES[size], time.perf_counter()
    here = images.choose(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    x, elsewhere = images.read(here), torch.ones(len(images), dtype=torch.bool)
    elsewhere[here] = False
    others, _ = images[elsewhere.nonzero()[:, 0]].sample(
        plan.images, generator=shard_generator(seed, 0, "others")
    )
    clean = Victim(vae).reconstruct(x, generator=shard_generator(seed, 0, "clean"))
    known = (kept or Keep())("defense_table", vae, images, size, plan, seed)
    rows = []
    for setting, ball in {"clean": None, **{f"{b.norm} {b.radius:g}": b for b in BALLS}}.items():
        x_adv = x if ball is None else attacked(vae, x, ball, plan, seed)
        assumed = float(ball.radius) if ball is not None and ball.norm == "linf" else RADII[-1]
        for name, defense in rows_of(assumed, plan.effort).items():

            def distance(name: str = name, defense: Defense = defense, y: Tensor = x_adv) -> Values:
                noise = shard_generator(seed, 0, name)
                x_hat = Victim(vae, defense).reconstruct(y, generator=noise)
                return {name: squared(x_hat, clean)}

            mean, stderr = mean_stderr(known(f"{setting}, {name}: {defense}", distance)[name])
            rows.append(Row(name, setting, mean, stderr, len(x), getattr(defense, "gradients", 0)))
            if progress is not None:
                progress(f"{setting}: {name}: {mean:.3g} ± {stderr:.2g}")

        steps = max(2, round(50 * plan.effort))

        def guessed(y: Tensor = x_adv, steps: int = steps) -> Values:
            noise = shard_generator(seed, 0, ESTIMATED)
            found = estimate_radius(vae, y, others, radii=TRIED, steps=steps, generator=noise)
            radius = min(found.radius, max(found.radii))
            x_hat = Victim(vae, RobustPosterior("linf", radius, steps)).reconstruct(
                y, generator=noise
            )
            return {ESTIMATED: squared(x_hat, clean), GUESS: [radius]}

        for name, values in known(f"{setting}, {ESTIMATED}", guessed).items():
            mean, stderr = mean_stderr(values) if len(values) > 1 else (values[0], 0.0)
            cost = steps * (len(TRIED) + 1)
            rows.append(Row(name, setting, mean, stderr, len(values), cost))
    return Table(
        "Squared distance to the clean reconstruction",
        "squared pixel units, summed over the image",
        tuple(rows),
        (
            f"{plan.images} test images, balanced over the classes.",
            "Attack: symmetric KL of the encoder's posteriors, a ball in [0, 1], "
            f"projected ascent, {plan.steps} steps, {plan.restarts} restarts; it does not know "
            "the defense.",
            "Distance: between the defended reconstruction of the attacked image and the "
            "undefended reconstruction of the clean one.",
            "In the clean column, where nothing is attacked, and in the l2 one the l-infinity "
            "radius called right is 0.2.",
            "A robust mode's radius is one number for all images. The estimated one is "
            f"`estimate_radius` of the column's images against {plan.images} other clean ones, by "
            "their excess energy; those gradients on the column's images are counted.",
        ),
        facts_of(vae, images, size, seed, began),
    )


def attacked(vae: VAE, x: Tensor, ball: Ball, plan: Size, seed: int) -> Tensor:
    """Images in [0, 1] that the encoder reads as far as possible from `x`, (B, C, H, W)."""
    search = ProjectedAscent(steps=plan.steps, restarts=plan.restarts)
    attack = Attack(LatentShift("symmetric_kl"), search, ball)
    noise = shard_generator(seed, 0, f"{ball.norm} {ball.radius:g}")
    return attack(Victim(vae), x, generator=noise).x_adv


def squared(a: Tensor, b: Tensor) -> list[float]:
    """Squared 2-norm of each image's difference."""
    return (a - b).flatten(1).square().sum(1).double().tolist()


if __name__ == "__main__":
    from_command_line(defense_table, "defense_table", __doc__)
