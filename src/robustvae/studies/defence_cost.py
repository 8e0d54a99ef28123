"""What each sampler and mode search recovers for how many gradients.

    python -m robustvae.studies.defence_cost --model runs/mnist-conv28-6 --data mnist

The attack and the distance are those of `defence_table`, at the larger radius. The last row is
the papers' schedule: 250 transitions to burn in and 500 more, of 20 leapfrog steps each.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from robustvae.data import Images
from robustvae.defences import HMC, Defence, Langevin, PosteriorMean, PosteriorMode, Victim
from robustvae.errors import check_choice
from robustvae.metrics import mean_stderr
from robustvae.models.base import VAE
from robustvae.seeding import shard_generator
from robustvae.studies.defence_table import RADII, SIZES, attacked, squared
from robustvae.studies.table import Row, Table, facts_of, from_command_line


def samplers(effort: float) -> list[tuple[str, Defence]]:
    """The rows, a family at several costs; `effort` is the share of the transitions that is run."""

    def n(count: int) -> int:
        return max(2, round(count * effort))

    rows: list[tuple[str, Defence]] = [("undefended (posterior mean)", PosteriorMean())]
    rows += [("posterior mode, Adam", PosteriorMode(n(count))) for count in (25, 50, 100)]
    rows += [("HMC, L = 5, step size per chain", HMC(n(count))) for count in (13, 26, 52, 100)]
    for count in (26, 100):
        dual = HMC(n(count), adapt="dual")
        average = HMC(n(count), average=True)
        encoder = HMC(n(count), mass="encoder", step_size=0.5)
        rows += [("HMC, L = 5, dual averaging", dual)]
        rows += [("HMC, L = 5, mean of the second half", average)]
        rows += [("HMC, L = 5, encoder's mass", encoder)]
        rows += [("MALA", Langevin(n(5 * count)))]
    fisher = HMC(n(13), mass="fisher", step_size=0.5)
    warm = HMC(n(40), n_leapfrog=2, start=PosteriorMode(n(50)))
    rows += [("HMC, L = 5, Fisher mass (and 64 products)", fisher)]
    rows += [("HMC, L = 2, from the mode", warm)]
    for count in (7, 25, 75, 750):
        rows.append(("HMC, L = 20, the papers' rule", HMC(n(count), n_leapfrog=20, adapt="paper")))
    return rows


def defence_cost(
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
        [Kuzina22] section 5 and appendix (T = 500, L = 20, first step size 0.1).
    """
    check_choice("size", size, SIZES)
    plan, began, radius = SIZES[size], time.perf_counter(), RADII[-1]
    x, _ = images.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    clean = Victim(vae).reconstruct(x, generator=shard_generator(seed, 0, "clean"))
    x_adv = attacked(vae, x, radius, plan, seed)
    rows = []
    for family, defence in samplers(plan.effort):
        cost = getattr(defence, "gradients", 0)
        name = f"{family}, {cost:,}" if cost else family
        started = time.perf_counter()
        noise = shard_generator(seed, 0, name)
        x_hat = Victim(vae, defence).reconstruct(x_adv, generator=noise)
        spent = (time.perf_counter() - started) / len(x)
        mean, stderr = mean_stderr(squared(x_hat, clean))
        rows.append(Row(name, "squared distance", mean, stderr, len(x), cost))
        rows.append(Row(name, "seconds an image", spent, 0.0, len(x), cost))
        if progress is not None:
            progress(f"{name}: {mean:.3g} ± {stderr:.2g}, {spent:.3g} s")
    return Table(
        "Gradients and recovery",
        "squared pixel units (summed over the image) and seconds",
        tuple(rows),
        (
            f"{plan.images} test images, balanced over the classes, one chain an image.",
            f"Attack: symmetric KL, l-infinity {radius:g} in [0, 1], projected ascent, "
            f"{plan.steps} steps, {plan.restarts} restarts; it does not know the defence.",
            "Distance: between the defended reconstruction of the attacked image and the "
            "undefended reconstruction of the clean one.",
            "A Fisher mass matrix costs one forward product of the decoder a latent dimension, "
            "which the count of gradients leaves out and the time does not.",
            "Times are wall times of this run, one thread, on a machine that was not idle: "
            "compare the counts, and the times only roughly.",
        ),
        facts_of(vae, images, size, seed, began),
    )


if __name__ == "__main__":
    from_command_line(defence_cost, "defence_cost", __doc__)
