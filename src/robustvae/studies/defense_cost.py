"""What each sampler and mode search recovers for how many gradients.

    python -m robustvae.studies.defense_cost --model runs/mnist-conv28 --data mnist

The attack and the distance are those of `defense_table`, at the larger radius. The first row is
the papers' schedule: 250 transitions to burn in and 500 more, of 20 leapfrog steps each. With
`--kept FILE` finished parts are kept there, and the command given again goes on after them.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from robustvae.data import Images
from robustvae.defenses import (
    HMC,
    Defense,
    Langevin,
    PosteriorMean,
    PosteriorMode,
    Victim,
    posterior,
)
from robustvae.errors import check_choice
from robustvae.mcmc import BatchWide, Kernel, hmc
from robustvae.metrics import mean_stderr, ms_ssim
from robustvae.models.base import VAE, frozen
from robustvae.models.layout import channels_last
from robustvae.seeding import draw, shard_generator
from robustvae.studies.defense_table import BALLS, SIZES, attacked, squared
from robustvae.studies.kept import Keep, Kept, Values, kept_images
from robustvae.studies.table import Row, Table, facts_of, from_command_line

SEGMENT = 50
BATCH = 20
PAPERS = "HMC, L = 20, the papers' rule"
LEFT = "HMC, L = 3, encoder's mass, left at the plateau"
RECOVERY = "squared distance"
PAIRED, NEARBY = "more than the papers' schedule", "more than 1,001 gradients of it"
SIMILAR, COUNT = "MS-SSIM", "gradients"
SPENT, FASTER = "milliseconds of a core an image", "times less than the papers' schedule"


def samplers(effort: float) -> list[tuple[str, Defense]]:
    """The rows, a family at several costs; `effort` is the share of the transitions that is run."""

    def n(count: int) -> int:
        return max(2, round(count * effort))

    def papers(count: int) -> tuple[str, Defense]:
        return PAPERS, HMC(n(count), n_leapfrog=20, adapt="paper")

    return [
        papers(750),
        ("undefended (posterior mean)", PosteriorMean()),
        *(("posterior mode, Adam", PosteriorMode(n(count))) for count in (25, 50)),
        *(("HMC, L = 5", HMC(n(count))) for count in (13, 26, 100)),
        *((f"HMC, L = {leap}", HMC(n(130 // leap), n_leapfrog=leap)) for leap in (2, 10, 20)),
        ("HMC, L = 5, encoder's mass", encoder(n(26))),
        ("HMC, L = 5, encoder's mass, bfloat16 force", encoder(n(26), force="bfloat16")),
        (
            "HMC, L = 3, encoder's mass, left at the plateau",
            encoder(n(50), n_leapfrog=3, plateau=5),
        ),
        ("HMC, L = 5, mean of the second half", HMC(n(26), average=True)),
        ("HMC, L = 5, dual averaging", HMC(n(26), adapt="dual")),
        *(
            (
                f"HMC, L = {leap}, acceptance 0.5",
                HMC(n(145 // leap), n_leapfrog=leap, acceptance=0.5),
            )
            for leap in (3, 5)
        ),
        ("HMC, L = 5, Fisher mass", HMC(n(13), mass="fisher", step_size=0.5)),
        ("posterior mode, Adam at rate 0.2", fast(n(50))),
        ("HMC, L = 5, from the mode", HMC(n(12), start=fast(n(80)))),
        *(("posterior mode, L-BFGS", lbfgs(n(count))) for count in (25, 50)),
        ("posterior mode, Gauss-Newton", PosteriorMode(n(10), method="gauss-newton")),
        ("HMC, L = 5, from L-BFGS's mode", HMC(n(16), start=lbfgs(n(60)))),
        ("MALA", Langevin(n(130))),
        *(papers(count) for count in (7, 15, 25, 50)),
    ]


def fast(steps: int) -> PosteriorMode:
    """The mode search at twice its usual first step."""
    return PosteriorMode(steps, rate=0.2)


def lbfgs(steps: int) -> PosteriorMode:
    """The mode search that remembers how the gradient turned."""
    return PosteriorMode(steps, method="lbfgs")


def encoder(steps: int, **options: object) -> HMC:
    """HMC in the encoder's metric: first step size 0.5 of the posterior's spread."""
    return HMC(steps, step_size=0.5, mass="encoder", **options)  # type: ignore[arg-type]


def defense_cost(
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
        [Kuzina22] section 5 and appendix (T = 500, L = 20, first step size 0.1), Table 5, Fig. 6.
    """
    check_choice("size", size, SIZES)
    plan, began, ball = SIZES[size], time.perf_counter(), BALLS[1]
    x, _ = images.sample(plan.images, stratified=True, generator=shard_generator(seed, 0, "data"))
    clean = Victim(vae).reconstruct(x, generator=shard_generator(seed, 0, "clean"))
    known = (kept or Keep())("defense_cost", vae, images, size, plan, seed)
    x_adv = kept_images(known, "attacked", x, lambda: attacked(vae, x, ball, plan, seed))
    found: dict[str, Values] = {}
    most: dict[str, int] = {}
    for family, defense in samplers(plan.effort):
        bound = getattr(defense, "gradients", 0)
        name = f"{family}, {bound:,}" if bound else family
        most[name] = bound
        victim, noise = Victim(vae, defense), shard_generator(seed, 0, name)
        if found:
            found[name] = known(
                f"{name}: {defense}", functools.partial(_part, victim, x_adv, clean, noise)
            )
        else:
            found[name] = _in_batches(victim, x_adv, clean, known, name, seed)
        if progress is not None:
            mean, stderr = mean_stderr(found[name][RECOVERY])
            progress(f"{name}: {mean:.3g} ± {stderr:.2g}, {found[name][SPENT][0]:.3g} ms")
    first, *_, last = found.values()
    per_gradient = last[SPENT][0] / most[name]
    lines: list[Row] = []
    for name, values in found.items():
        count = round(statistics.fmean(values.get(COUNT, [most[name]])))
        ratio = per_gradient * most[next(iter(found))] / values[SPENT][0]
        told = {
            RECOVERY: values[RECOVERY],
            PAIRED: _gaps(values, first),
            NEARBY: _gaps(values, last),
            SIMILAR: values[SIMILAR],
        }
        for setting, numbers in told.items():
            mean, stderr = mean_stderr(numbers)
            lines.append(Row(name, setting, mean, stderr, len(numbers), count))
        lines.append(Row(name, SPENT, values[SPENT][0], 0.0, len(x), count))
        if values is not first:
            lines.append(Row(name, FASTER, ratio, 0.0, len(x), count))
    return Table(
        "Gradients and recovery",
        "squared pixel units (summed over the image), MS-SSIM, milliseconds, ratios",
        tuple(lines),
        (
            f"{plan.images} test images, balanced over the classes, one chain an image, 100 at "
            f"once; the papers' whole schedule (the first row) {BATCH} at once.",
            f"Attack: symmetric KL, l-infinity {ball.radius:g} in [0, 1], projected ascent, "
            f"{plan.steps} steps, {plan.restarts} restarts; it does not know the defense.",
            "Distance: between the defended reconstruction of the attacked image and the "
            "undefended reconstruction of the clean one. Differences to the papers' whole "
            "schedule, and to the last row, are taken image by image. MS-SSIM of the same pairs, "
            "as in the paper's code (variant kuzina2022).",
            "HMC from a mode and the acceptance of 0.5 were each chosen among a dozen settings on "
            "40 other images.",
            "A Fisher mass matrix, and each of Gauss-Newton's steps, costs one forward product of "
            "the decoder a latent dimension, which the count of gradients leaves out and the time "
            "does not. Where chains leave, the column has the mean count and the name the most "
            "that one can spend.",
            "Time: processor time of one thread (waiting for other work on the machine is not "
            "counted), reading the latent and decoding it once. In the ratios the papers' whole "
            "schedule is counted at the time of a gradient in the last row, whose batch is that of "
            "the others: in batches of its own it took longer, as its column says.",
        ),
        facts_of(vae, images, size, seed, began),
    )


def _gaps(values: Values, reference: Values) -> list[float]:
    """Image by image."""
    pairs = zip(values[RECOVERY], reference[RECOVERY], strict=True)
    return [here - there for here, there in pairs]


def _part(victim: Victim, x_adv: Tensor, clean: Tensor, generator: torch.Generator) -> Values:
    state, started = generator.get_state(), time.process_time()
    x_hat = victim.reconstruct(x_adv, generator=generator)
    part = _measures(x_hat, clean, time.process_time() - started)
    if isinstance(victim.defense, HMC) and victim.defense.plateau is not None:
        generator.set_state(state)
        again = victim.defense.settle(victim.vae, x_adv, generator=generator)
        part[COUNT] = again.gradients.double().tolist()
    return part


def _in_batches(
    victim: Victim, x_adv: Tensor, clean: Tensor, known: Kept, name: str, seed: int
) -> Values:
    """The papers' rule on `BATCH` images after another: each batch has its own step size."""
    parts = []
    for number, (here, there) in enumerate(
        zip(x_adv.split(BATCH), clean.split(BATCH), strict=True)
    ):
        own = f"{name}, batch {number}" if number else name
        parts.append(_in_segments(victim, here, there, known, own, seed))
    joined = {key: [v for part in parts for v in part[key]] for key in (RECOVERY, SIMILAR)}
    return joined | {SPENT: [statistics.fmean(part[SPENT][0] for part in parts)]}


def _in_segments(
    victim: Victim, x_adv: Tensor, clean: Tensor, known: Kept, name: str, seed: int
) -> Values:
    """A long run of the papers' rule, `SEGMENT` transitions after `SEGMENT`, each kept.

    The state and the step size, which the rule never stops moving, are carried over; the gradient
    at the start of a segment is computed again, and its time left in.
    """
    vae, own = victim.vae, victim.defense
    assert isinstance(own, HMC)

    def segment(number: int, steps: int, before: Values) -> Values:
        noise, started = shard_generator(seed, number, name), time.process_time()
        with torch.no_grad(), frozen(vae), channels_last(vae):
            if before:
                z = torch.tensor(before["z"], dtype=x_adv.dtype).view(len(x_adv), -1)
            else:
                z = draw(vae.encode(x_adv), generator=noise)
            chain = hmc(
                posterior(vae, x_adv),
                z,
                Kernel(before["step size"][0] if before else own.step_size, own.n_leapfrog),
                steps=steps,
                adaptation=BatchWide(),
                generator=noise,
            )
        return {
            "z": chain.z.flatten().tolist(),
            "step size": [chain.step_size[0].item()],
            "acceptance": [chain.acceptance.mean().item()],
            "seconds": [time.process_time() - started],
        }

    state: Values = {}
    spent = 0.0
    for number, first in enumerate(range(0, own.steps, SEGMENT)):
        steps = min(SEGMENT, own.steps - first)
        compute = functools.partial(segment, number, steps, state)
        state = known(f"{name}, segment {number}", compute)
        spent += state["seconds"][0]
    z = torch.tensor(state["z"], dtype=x_adv.dtype).view(len(x_adv), -1)
    with torch.no_grad(), frozen(vae):
        x_hat = vae.decode(z).mean
    return _measures(x_hat, clean, spent)


def _measures(x_hat: Tensor, clean: Tensor, seconds: float) -> Values:
    return {
        RECOVERY: squared(x_hat, clean),
        SIMILAR: ms_ssim(x_hat.clamp(0, 1), clean.clamp(0, 1), variant="kuzina2022").tolist(),
        SPENT: [1000 * seconds / len(x_hat)],
    }


if __name__ == "__main__":
    from_command_line(defense_cost, "defense_cost", __doc__)
