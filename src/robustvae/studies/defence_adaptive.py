"""Mode searches under attacks that know them: the worst image by image is what counts.

    python -m robustvae.studies.defence_adaptive --model runs/mnist-conv28-6 --data mnist

Every attack keeps to the same l-infinity ball. Measured is the squared distance between the
defended reconstruction of the attacked image and the undefended one of the clean image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from robustvae.attacks import Attack, LatentShift, MaximumDamage
from robustvae.data import Images
from robustvae.defences import Defence, PosteriorMean, PosteriorMode, RobustPosterior, Victim
from robustvae.errors import check_choice
from robustvae.metrics import mean_stderr
from robustvae.models.base import VAE
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import shard_generator
from robustvae.studies.defence_table import RADII, Size, squared
from robustvae.studies.table import Row, Table, facts_of, from_command_line

SIZES = {
    "smoke": Size(4, 2, 1, 0.1),
    "laptop": Size(20, 20, 1, 1.0),
}


def defence_adaptive(
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
        [Kuzina22] Eq. 63-66 (the adaptive attack).
    """
    check_choice("size", size, SIZES)
    plan, began, radius = SIZES[size], time.perf_counter(), RADII[-1]
    x, _ = images.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    clean = Victim(vae).reconstruct(x, generator=shard_generator(seed, 0, "clean"))
    ball = Ball("linf", radius)
    cheap = ProjectedAscent(steps=max(2, round(50 * plan.effort)), restarts=10)
    costly = ProjectedAscent(steps=plan.steps, restarts=plan.restarts, chunk=plan.images)
    steps = max(2, round(50 * plan.effort))
    defences: dict[str, Defence] = {
        "undefended (posterior mean)": PosteriorMean(),
        "posterior mode": PosteriorMode(steps=steps),
        "robust mode, from the origin": RobustPosterior("linf", radius, steps),
        "robust mode, from the encoder's mean": RobustPosterior("linf", radius, steps, "mean"),
    }
    rows: list[Row] = []
    overall: list[Row] = []
    for name, defence in defences.items():
        victim = Victim(vae, defence)
        attacks = {
            "latent shift": (Attack(LatentShift("symmetric_kl"), cheap, ball), Victim(vae)),
            "damage, transferred": (Attack(MaximumDamage(), cheap, ball), Victim(vae)),
        }
        if isinstance(defence, PosteriorMode | RobustPosterior):
            through = Attack(MaximumDamage(), costly, ball)
            attacks["adaptive, unrolled"] = (through, victim)
            implicit = Victim(vae, replace(defence, gradient="implicit"))
            attacks["adaptive, implicit"] = (through, implicit)
        worst = torch.zeros(len(x), dtype=torch.float64)
        for setting, (attack, target) in attacks.items():
            noise = shard_generator(seed, 0, setting)
            x_adv = attack(target, x, generator=noise).x_adv
            x_hat = victim.reconstruct(x_adv, generator=shard_generator(seed, 0, name))
            distance = squared(x_hat, clean)
            worst = torch.maximum(worst, torch.tensor(distance, dtype=torch.float64))
            rows.append(_row(name, setting, distance, victim))
            if progress is not None:
                progress(f"{name}: {setting}: {rows[-1].measured:.3g} ± {rows[-1].stderr:.2g}")
        overall.append(_row(name, "worst per image", worst.tolist(), victim))
    return Table(
        f"Mode searches under attacks that know them, l-infinity {radius:g}",
        "squared pixel units, summed over the image",
        tuple(rows + overall),
        (
            f"{plan.images} test images, balanced over the classes.",
            f"Latent shift (symmetric KL) and maximum damage attack the undefended model "
            f"({cheap.steps} steps, {cheap.restarts} restarts); the adaptive attacks maximise the "
            f"damage through the search itself ({costly.steps} steps, {costly.restarts} "
            "restart), by unrolled and by implicit gradients.",
            "One restart and few steps: the adaptive numbers are lower bounds on what an "
            "attacker can do.",
        ),
        facts_of(vae, images, size, seed, began),
    )


def _row(name: str, setting: str, distance: list[float], victim: Victim) -> Row:
    mean, stderr = mean_stderr(distance)
    cost = getattr(victim.defence, "gradients", 0)
    return Row(name, setting, mean, stderr, len(distance), cost)


if __name__ == "__main__":
    from_command_line(defence_adaptive, "defence_adaptive", __doc__)
