"""[Kuzina22] Fig. 6, 15 and Table 5: what each sampler and mode search recovers at which cost.

The attack and the distance are those of kuzina2022/recovery, at the larger radius. The first row
is the papers' schedule: 250 transitions to burn in and 500 more, of 20 leapfrog steps each.
"""

from __future__ import annotations

import functools
import statistics
import time

import torch
from torch import Tensor

from experiments.harness import Result, Row, Run, item
from experiments.harness.rows import measured
from experiments.papers.kuzina2022.common import (
    BALLS,
    attacked,
    gradients,
    joined,
    references,
    share_of,
    similarity,
    squared,
    undefended,
)
from experiments.papers.kuzina2022.recovery import SIZES, Spec
from robustvae.defenses import (
    HMC,
    Defense,
    Langevin,
    PosteriorMean,
    PosteriorMode,
    Victim,
    posterior,
)
from robustvae.mcmc import BatchWide, Kernel, hmc
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.seeding import draw

SEGMENT, BATCH = 50, 20
PAPERS = "HMC, L = 20, the papers' rule"
RECOVERY, SIMILAR, COUNT = "squared distance", "MS-SSIM", "gradients"
PAIRED, NEARBY = "more than the papers' schedule", "more than 1,001 gradients of it"
SPENT, FASTER = "milliseconds of a core an image", "times less than the papers' schedule"
Values = dict[str, list[float]]


def samplers(effort: float) -> list[tuple[str, Defense]]:
    """The rows, a family at several costs; `effort` is the share of the transitions that is run."""

    def n(count: int) -> int:
        return share_of(count, effort)

    def papers(count: int) -> tuple[str, Defense]:
        return PAPERS, HMC(n(count), n_leapfrog=20, adapt="paper")

    def lbfgs(steps: int) -> PosteriorMode:
        return PosteriorMode(steps, method="lbfgs")

    def encoder(steps: int, **options: object) -> HMC:
        return HMC(steps, step_size=0.5, mass="encoder", **options)  # type: ignore[arg-type]

    fast = functools.partial(PosteriorMode, rate=0.2)
    half = [(leap, HMC(n(145 // leap), n_leapfrog=leap, acceptance=0.5)) for leap in (3, 5)]
    leaving = encoder(n(50), n_leapfrog=3, plateau=5)
    return [
        papers(750),
        ("undefended (posterior mean)", PosteriorMean()),
        *(("posterior mode, Adam", PosteriorMode(n(count))) for count in (25, 50)),
        *(("HMC, L = 5", HMC(n(count))) for count in (13, 26, 100)),
        *((f"HMC, L = {leap}", HMC(n(130 // leap), n_leapfrog=leap)) for leap in (2, 10, 20)),
        ("HMC, L = 5, encoder's mass", encoder(n(26))),
        ("HMC, L = 5, encoder's mass, bfloat16 force", encoder(n(26), force="bfloat16")),
        ("HMC, L = 3, encoder's mass, left at the plateau", leaving),
        ("HMC, L = 5, mean of the second half", HMC(n(26), average=True)),
        ("HMC, L = 5, dual averaging", HMC(n(26), adapt="dual")),
        *((f"HMC, L = {leap}, acceptance 0.5", chain) for leap, chain in half),
        ("HMC, L = 5, Fisher mass", HMC(n(13), mass="fisher", step_size=0.5)),
        ("posterior mode, Adam at rate 0.2", fast(n(50))),
        ("HMC, L = 5, from the mode", HMC(n(12), start=fast(n(80)))),
        *(("posterior mode, L-BFGS", lbfgs(n(count))) for count in (25, 50)),
        ("posterior mode, Gauss-Newton", PosteriorMode(n(10), method="gauss-newton")),
        ("HMC, L = 5, from L-BFGS's mode", HMC(n(16), start=lbfgs(n(60)))),
        ("MALA", Langevin(n(130))),
        *(papers(count) for count in (7, 15, 25, 50)),
    ]


@item(
    "kuzina2022/cost",
    "[Kuzina22] Fig. 6, 15, Table 5 (T = 500, L = 20, first step size 0.1)",
    sizes=SIZES,
)
def cost(spec: Spec, run: Run) -> Result:
    """What every sampler and mode search recovers for how many gradients and milliseconds."""
    vae, ball = run.model(spec.model), BALLS[1]
    x, _ = references(run.images(spec.data), spec.images, run.seed)
    clean = undefended(vae, x, run)
    x_adv = run.tensor(
        "attacked", x, lambda: attacked(vae, x, ball, spec.steps, spec.restarts, run.seed), vae
    )
    columns: dict[str, Values] = {}
    most: dict[str, int] = {}
    for family, defense in run.each(samplers(spec.effort)):
        bound = gradients(defense)
        name = f"{family}, {bound:,}" if bound else family
        most[name], victim = bound, Victim(vae, defense)
        if not columns:
            columns[name] = _in_batches(victim, x_adv, clean, run, name)
        else:
            compute = functools.partial(_part, victim, x_adv, clean, run.noise(name))
            columns[name] = run.part(f"{name}: {defense}", compute, vae)
        run.progress(f"{name}: {columns[name][SPENT][0]:.3g} ms")
    first, *_, last = columns.values()
    whole = most[next(iter(columns))] * last[SPENT][0] / most[name]
    rows: list[Row] = []
    for name, values in columns.items():
        count = round(statistics.fmean(values.get(COUNT, [most[name]])))
        shown = {
            RECOVERY: values[RECOVERY],
            PAIRED: _gaps(values, first),
            NEARBY: _gaps(values, last),
            SIMILAR: values[SIMILAR],
        }
        rows += [measured(name, setting, part, cost=count) for setting, part in shown.items()]
        rows.append(Row(name, SPENT, values[SPENT][0], n=len(x), cost=count))
        if values is not first:
            rows.append(Row(name, FASTER, whole / values[SPENT][0], n=len(x), cost=count))
    return run.result(
        "Gradients and recovery",
        "squared pixel units (summed over the image), MS-SSIM, milliseconds, ratios",
        rows,
        (
            f"{spec.images} test images, balanced over the classes, one chain an image, 100 at "
            f"once; the papers' whole schedule (the first row) {BATCH} at once.",
            f"Attack: symmetric KL, l-infinity {ball.radius:g} in [0, 1], projected ascent, "
            f"{spec.steps} steps, {spec.restarts} restarts; it does not know the defense.",
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
    )


def _gaps(values: Values, reference: Values) -> list[float]:
    """Image by image."""
    return [a - b for a, b in zip(values[RECOVERY], reference[RECOVERY], strict=True)]


def _part(victim: Victim, x_adv: Tensor, clean: Tensor, generator: torch.Generator) -> Values:
    state, started = generator.get_state(), time.process_time()
    x_hat = victim.reconstruct(x_adv, generator=generator)
    part = _measures(x_hat, clean, time.process_time() - started)
    if isinstance(victim.defense, HMC) and victim.defense.plateau is not None:
        generator.set_state(state)
        again = victim.defense.settle(victim.vae, x_adv, generator=generator)
        part[COUNT] = again.gradients.double().tolist()
    return part


def _in_batches(victim: Victim, x_adv: Tensor, clean: Tensor, run: Run, name: str) -> Values:
    """The papers' rule on `BATCH` images after another: each batch has its own step size."""
    parts = []
    pairs = zip(x_adv.split(BATCH), clean.split(BATCH), strict=True)
    for number, (attacked_part, clean_part) in enumerate(pairs):
        label = f"{name}, batch {number}" if number else name
        parts.append(_in_segments(victim, attacked_part, clean_part, run, label))
    times = [part.pop(SPENT)[0] for part in parts]
    return joined(parts) | {SPENT: [statistics.fmean(times)]}


def _in_segments(victim: Victim, x_adv: Tensor, clean: Tensor, run: Run, name: str) -> Values:
    """A long run of the papers' rule, `SEGMENT` transitions after `SEGMENT`, each stored.

    The state and the step size, which the rule never stops moving, are carried over; the gradient
    at the start of a segment is computed again, and its time left in.
    """
    vae, rule = victim.vae, victim.defense
    assert isinstance(rule, HMC)

    def segment(number: int, steps: int, before: Values) -> Values:
        noise, started = run.noise(name, number), time.process_time()
        with torch.no_grad(), frozen(vae), channels_last(vae):
            if before:
                z = torch.tensor(before["z"], dtype=x_adv.dtype).view(len(x_adv), -1)
            else:
                z = draw(vae.encode(x_adv), generator=noise)
            chain = hmc(
                posterior(vae, x_adv),
                z,
                Kernel(before["step size"][0] if before else rule.step_size, rule.n_leapfrog),
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
    for number, first in enumerate(range(0, rule.steps, SEGMENT)):
        steps = min(SEGMENT, rule.steps - first)
        compute = functools.partial(segment, number, steps, state)
        state = run.part(f"{name}, segment {number}", compute, vae)
        spent += state["seconds"][0]
    z = torch.tensor(state["z"], dtype=x_adv.dtype).view(len(x_adv), -1)
    with torch.no_grad(), frozen(vae):
        x_hat = vae.decode(z).mean
    return _measures(x_hat, clean, spent)


def _measures(x_hat: Tensor, clean: Tensor, seconds: float) -> Values:
    return {
        RECOVERY: squared(x_hat, clean),
        SIMILAR: similarity(x_hat, clean).tolist(),
        SPENT: [1000 * seconds / len(x_hat)],
    }
