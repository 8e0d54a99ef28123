"""Diagnostics of the samplers, chain by chain, and how long a trajectory should be.

    python -m robustvae.studies.defense_chains --model runs/mnist-conv28 --data mnist

Several chains on each attacked image, all samplers at the same number of gradients. Effective
draws are those of the image's worst coordinate.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from robustvae.data import Images
from robustvae.defenses import HMC
from robustvae.errors import check_choice
from robustvae.metrics import mean_stderr
from robustvae.models.base import VAE
from robustvae.seeding import shard_generator
from robustvae.studies import defense_table
from robustvae.studies.defense_table import BALLS, attacked
from robustvae.studies.kept import Keep, Values, kept_images
from robustvae.studies.table import Row, Table, facts_of, from_command_line

CHAINS = 4
ACCEPTED, ERROR, SPREAD = "acceptance", "energy error, nats", "worst R-hat"
DRAWS, DIVERGED, SOUND = "effective draws per 1,000 gradients", "divergences", "share sound"


@final
@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        images: Inputs.
        gradients: Of each chain.
    """

    images: int
    gradients: int


SIZES = {"smoke": Size(3, 200), "laptop": Size(5, 1000), "full": Size(50, 5000)}


def samplers(gradients: int) -> dict[str, HMC]:
    """Trajectories of several lengths, and two mass matrices, for about as many gradients each."""
    rows = {f"L = {leap}": HMC(gradients // leap, n_leapfrog=leap) for leap in (1, 2, 5, 10, 20)}
    rows["L = 5, encoder's mass"] = HMC(gradients // 5, step_size=0.5, mass="encoder")
    rows["L = 5, encoder's mass, bfloat16 force"] = HMC(
        gradients // 5, step_size=0.5, mass="encoder", force="bfloat16"
    )
    return rows


def defense_chains(
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
        Gelman et al., 2013, section 11.4; Hoffman & Gelman, 2014 (no-U-turn).
    """
    check_choice("size", size, SIZES)
    plan, began, ball = SIZES[size], time.perf_counter(), BALLS[1]
    known = (kept or Keep())("defense_chains", vae, images, size, plan, seed)
    x, _ = images.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    effort = defense_table.SIZES[size]
    x_adv = kept_images(known, "attacked", x, lambda: attacked(vae, x, ball, effort, seed))
    rows: list[Row] = []
    for name, defense in samplers(plan.gradients).items():
        values = known(
            f"{name}: {defense}", functools.partial(_part, vae, x_adv, defense, seed, name)
        )
        for setting, numbers in values.items():
            mean, stderr = mean_stderr(numbers)
            rows.append(Row(name, setting, mean, stderr, len(numbers), defense.gradients))
        worst = max(values[SPREAD])
        rows.append(Row(name, "largest of them", worst, 0.0, len(x), defense.gradients))
        if progress is not None:
            draws, spread = (mean_stderr(values[key])[0] for key in (DRAWS, SPREAD))
            progress(f"{name}: {draws:.3g} effective draws per 1,000 gradients, R-hat {spread:.3g}")
    return Table(
        "Diagnostics of the chains",
        "the units of the columns",
        tuple(rows),
        (
            f"{plan.images} attacked test images (symmetric KL, l-infinity {ball.radius:g}), "
            f"{CHAINS} chains on each from draws of the encoder's posterior; half of the "
            "transitions warm up, step size adapted for each chain, and are thrown away.",
            "Effective draws and R-hat are those of the worst of the latent's coordinates, all "
            "chains of an image together; gradients of the warm-up are counted.",
            "Sound: no divergence, worst R-hat below 1.1, at least 10 effective draws.",
        ),
        facts_of(vae, images, size, seed, began),
    )


def _part(vae: VAE, x_adv: Tensor, defense: HMC, seed: int, name: str) -> Values:
    noise = shard_generator(seed, 0, name)
    told = defense.diagnose(vae, x_adv, chains=CHAINS, generator=noise)
    found = {
        ACCEPTED: told.acceptance,
        ERROR: told.energy_error,
        SPREAD: told.r_hat,
        DRAWS: 1000 * told.ess / told.gradients,
        DIVERGED: told.divergences,
        SOUND: told.sound,
    }
    return {key: values.double().tolist() for key, values in found.items()}


if __name__ == "__main__":
    from_command_line(defense_chains, "defense_chains", __doc__)
