"""The robust mode under attacks that know it: the worst image by image is what counts.

    python -m robustvae.studies.defence_adaptive --model runs/mnist-conv28 --data mnist

Every attack keeps to the same l-infinity ball. Measured are MS-SSIM and the squared distance
between the defended reconstruction of the attacked image and the undefended one of the clean
image. With `--kept FILE` finished parts are kept there, and the command given again goes on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from robustvae.attacks import Attack, LatentShift, MaximumDamage
from robustvae.data import Images
from robustvae.defences import HMC, Defence, PosteriorMean, RobustPosterior, Victim
from robustvae.errors import check_choice
from robustvae.metrics import mean_stderr, ms_ssim
from robustvae.models.base import VAE
from robustvae.perturb import ProjectedAscent
from robustvae.seeding import shard_generator
from robustvae.studies.defence_table import BALLS, squared
from robustvae.studies.kept import Keep, Values
from robustvae.studies.table import Row, Table, facts_of, from_command_line

DISTANCE, SIMILAR = "squared distance", "MS-SSIM"
WORST = "worst per image"


@final
@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        images: Inputs.
        shard: Inputs attacked at once.
        effort: Share of the solver's gradients.
        oblivious: Steps and restarts of the attacks on the undefended model.
        unrolled: Steps and restarts of the attack that unrolls the solver.
        implicit: Steps and restarts of the attack that has the solver's implicit gradient.
    """

    images: int
    shard: int
    effort: float
    oblivious: tuple[int, int]
    unrolled: tuple[int, int]
    implicit: tuple[int, int]


SIZES = {
    "smoke": Size(4, 2, 0.1, (5, 2), (2, 1), (2, 2)),
    "laptop": Size(50, 10, 1.0, (50, 10), (10, 2), (10, 2)),
    "full": Size(50, 10, 1.0, (50, 10), (50, 10), (50, 10)),
}


def defence_adaptive(
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
        DataError: `kept` holds parts of another run.

    References:
        [Kuzina22] Eq. 63-66 (the adaptive attack).
    """
    check_choice("size", size, SIZES)
    plan, began, ball = SIZES[size], time.perf_counter(), BALLS[1]
    x, _ = images.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    clean = Victim(vae).reconstruct(x, generator=shard_generator(seed, 0, "clean"))
    known = (kept or Keep())("defence_adaptive", vae, images, size, seed)
    solver = RobustPosterior("linf", float(ball.radius), max(2, round(50 * plan.effort)))
    implicit = Victim(
        vae, RobustPosterior("linf", solver.radius, solver.steps, gradient="implicit")
    )
    search = {
        name: ProjectedAscent(steps=steps, restarts=restarts, chunk=100)
        for name, (steps, restarts) in (
            ("oblivious", plan.oblivious),
            ("unrolled", plan.unrolled),
            ("implicit", plan.implicit),
        )
    }
    damage = MaximumDamage()
    shift = Attack(LatentShift("symmetric_kl"), search["oblivious"], ball), Victim(vae)
    moved = Attack(damage, search["oblivious"], ball), Victim(vae)
    blind = {"latent shift": shift, "damage, transferred": moved}
    through = {
        "damage through the solver, unrolled": (
            Attack(damage, search["unrolled"], ball),
            Victim(vae, solver),
        ),
        "damage through the solver, implicit": (Attack(damage, search["implicit"], ball), implicit),
    }
    hmc = HMC(max(2, round(26 * plan.effort)), step_size=0.5, mass="encoder")
    rows: list[Row] = []
    for name, defence, attacks in (
        ("undefended", PosteriorMean(), blind),
        ("HMC", hmc, blind),
        ("robust mode", solver, blind | through),
    ):
        found: list[Values] = []
        for setting, (attack, victim) in attacks.items():
            parts = []
            for shard, at in enumerate(torch.arange(len(x)).split(plan.shard)):
                compute = functools.partial(
                    _part, attack, victim, Victim(vae, defence), x[at], clean[at], seed, shard
                )
                parts.append(known(f"{name}, {setting}, shard {shard}", compute))
            found.append({key: [v for part in parts for v in part[key]] for key in parts[0]})
            rows += _rows(f"{name}: {setting}", found[-1], defence)
            if progress is not None:
                told = (f"{row.setting} {row.measured:.3g} ± {row.stderr:.2g}" for row in rows[-2:])
                progress(f"{name}: {setting}: {', '.join(told)}")
        worst = {
            DISTANCE: [max(values) for values in zip(*(f[DISTANCE] for f in found), strict=True)],
            SIMILAR: [min(values) for values in zip(*(f[SIMILAR] for f in found), strict=True)],
        }
        rows += _rows(f"{name}: {WORST}", worst, defence)
    runs = ", ".join(f"{k} {s.steps} steps and {s.restarts} restarts" for k, s in search.items())
    return Table(
        f"Defences under attacks that know the robust mode, l-infinity {ball.radius:g}",
        "MS-SSIM (variant kuzina2022) and squared pixel units",
        tuple(rows),
        (
            f"{plan.images} test images, balanced over the classes; both measures compare the "
            "defended reconstruction of the attacked image with the undefended one of the clean "
            "image. Worst per image: of the attacks listed above it, each measure by itself.",
            "Latent shift (symmetric KL) and transferred damage attack the undefended model; the "
            "others maximise the damage through the robust mode itself, from its true start: "
            f"{runs}. A search keeps the best of its restarts by its own score.",
            "HMC was not attacked through its chain here.",
            "Attacks with few steps give bounds from one side: what an attacker can do is at "
            "least this.",
        ),
        facts_of(vae, images, size, seed, began),
    )


def _part(
    attack: Attack, target: Victim, victim: Victim, x: Tensor, clean: Tensor, seed: int, shard: int
) -> Values:
    x_adv = attack(target, x, generator=shard_generator(seed, shard, "attack")).x_adv
    x_hat = victim.reconstruct(x_adv, generator=shard_generator(seed, shard, "defence"))
    return {
        DISTANCE: squared(x_hat, clean),
        SIMILAR: ms_ssim(x_hat, clean, variant="kuzina2022").tolist(),
    }


def _rows(what: str, values: Values, defence: Defence) -> list[Row]:
    cost = getattr(defence, "gradients", 0)
    made = []
    for setting, numbers in values.items():
        mean, stderr = mean_stderr(numbers)
        made.append(Row(what, setting, mean, stderr, len(numbers), cost))
    return made


if __name__ == "__main__":
    from_command_line(defence_adaptive, "defence_adaptive", __doc__)
