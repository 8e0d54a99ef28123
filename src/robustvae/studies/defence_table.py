"""How far each defence brings the reconstruction of an attacked image back to the clean one.

    python -m robustvae.studies.defence_table --model runs/mnist-conv28-6 --data mnist

The attack shifts the latent (symmetric KL, l-infinity) and does not know the defence. Measured
is the squared distance between the defended reconstruction of the attacked image and the
undefended reconstruction of the clean one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from robustvae.attacks import Attack, LatentShift
from robustvae.data import Images
from robustvae.defences import (
    HMC,
    Defence,
    PosteriorMean,
    PosteriorMode,
    PosteriorSample,
    Refined,
    RobustPosterior,
    Threshold,
    Victim,
)
from robustvae.errors import check_choice
from robustvae.metrics import mean_stderr
from robustvae.models.base import VAE
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import shard_generator
from robustvae.studies.table import Row, Table, facts_of, from_command_line

RADII = (0.1, 0.2)


@final
@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        images: Inputs.
        steps: Of the attack.
        restarts: Of the attack.
        effort: Share of each defence's gradients.
    """

    images: int
    steps: int
    restarts: int
    effort: float


SIZES = {
    "smoke": Size(8, 5, 1, 0.1),
    "laptop": Size(100, 50, 10, 1.0),
}


def rows_of(radius: float, effort: float) -> dict[str, Defence]:
    """The defences of one column, by name; the robust ones never know more than the radius."""

    def n(count: int) -> int:
        return max(2, round(count * effort))

    return {
        "undefended (posterior mean)": PosteriorMean(),
        "posterior sample": PosteriorSample(),
        "HMC, step size per chain, short": HMC(steps=n(26)),
        "HMC, step size per chain": HMC(steps=n(100)),
        "HMC, the paper's rule": HMC(steps=n(50), n_leapfrog=n(20), adapt="paper"),
        "posterior mode": PosteriorMode(steps=n(100)),
        "threshold at 1/2, then posterior mean": Refined(Threshold(0.5)),
        "robust mode, radius right": RobustPosterior("linf", radius, steps=n(50)),
        "robust mode, radius 0.2": RobustPosterior("linf", 0.2, steps=n(50)),
        "robust mode, radius 0.3": RobustPosterior("linf", 0.3, steps=n(50)),
        "robust mode, half the radius": RobustPosterior("linf", radius / 2, steps=n(50)),
    }


def defence_table(
    vae: VAE,
    images: Images,
    *,
    size: str = "laptop",
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Table:
    """Run the study.

    Args:
        vae: The model.
        images: Where the inputs are sampled, class by class.
        size: "smoke" or "laptop".
        seed: Of everything random.
        progress: Told what has been done, a line at a time.

    Raises:
        UnknownNameError: Any other size.

    References:
        [Kuzina22] sections 4 and 5; the robust mode is this library's own.
    """
    check_choice("size", size, SIZES)
    plan, began = SIZES[size], time.perf_counter()
    x, _ = images.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    clean = Victim(vae).reconstruct(x, generator=shard_generator(seed, 0, "clean"))
    rows = []
    for setting, radius in (("clean", None), *((f"linf {r:g}", r) for r in RADII)):
        x_adv = x
        if radius is not None:
            x_adv = attacked(vae, x, radius, plan, seed)
        for name, defence in rows_of(radius or RADII[-1], plan.effort).items():
            victim = Victim(vae, defence)
            x_hat = victim.reconstruct(x_adv, generator=shard_generator(seed, 0, name))
            mean, stderr = mean_stderr(squared(x_hat, clean))
            rows.append(Row(name, setting, mean, stderr, len(x), getattr(defence, "gradients", 0)))
            if progress is not None:
                progress(f"{setting}: {name}: {mean:.3g} ± {stderr:.2g}")
    return Table(
        "Squared distance to the clean reconstruction",
        "squared pixel units, summed over the image",
        tuple(rows),
        (
            f"{plan.images} test images, balanced over the classes.",
            "Attack: symmetric KL of the encoder's posteriors, l-infinity ball in [0, 1], "
            f"projected ascent, {plan.steps} steps, {plan.restarts} restarts; it does not know "
            "the defence.",
            "Distance: between the defended reconstruction of the attacked image and the "
            "undefended reconstruction of the clean one. In the clean column nothing is attacked "
            "and the radius that is right is 0.2.",
            "A robust mode's radius is one number for all images.",
        ),
        facts_of(vae, images, size, seed, began),
    )


def attacked(vae: VAE, x: Tensor, radius: float, plan: Size, seed: int) -> Tensor:
    """Images in [0, 1] that the encoder reads as far as possible from `x`, (B, C, H, W)."""
    search = ProjectedAscent(steps=plan.steps, restarts=plan.restarts)
    attack = Attack(LatentShift("symmetric_kl"), search, Ball("linf", radius))
    noise = shard_generator(seed, 0, f"linf {radius:g}")
    return attack(Victim(vae), x, generator=noise).x_adv


def squared(a: Tensor, b: Tensor) -> list[float]:
    """Squared 2-norm of each image's difference."""
    return (a - b).flatten(1).square().sum(1).double().tolist()


if __name__ == "__main__":
    from_command_line(defence_table, "defence_table", __doc__)
