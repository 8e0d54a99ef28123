"""Attacks in one batch against the same attack point by point: one thread, interleaved.

The slow side is a plain loop over the images and restarts with the model's weights frozen. Its
time is measured on some of the points each round and scaled to all of them. The floor is the
encoder's forward and backward pass to the input, weights frozen, channels last.
"""

from __future__ import annotations

import resource
import statistics
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

import robustvae as rv
from experiments.bench.timing import seconds
from experiments.harness import Result, Row, Run, item
from robustvae.attacks import Attack, LatentShift
from robustvae.defenses import Victim
from robustvae.metrics import symmetric_kl
from robustvae.models.base import frozen
from robustvae.models.layout import channels_last
from robustvae.perturb import Ball, ProjectedAscent
from robustvae.seeding import rand


@final
@dataclass(frozen=True)
class Spec:
    """What is timed.

    Attributes:
        model: The victim.
        data: Its data set.
        points: Images attacked.
        slow: Of them attacked point by point in each round.
        steps: Of the attack.
        restarts: Of the attack.
        rounds: Of both sides in turn.
        radius: l-infinity.
    """

    model: str = "mnist-conv28"
    data: str = "mnist"
    points: int = 50
    slow: int = 4
    steps: int = 50
    restarts: int = 10
    rounds: int = 3
    radius: float = 0.1


def _floor(vae: rv.VAE, x: Tensor) -> None:
    y = x.clone().requires_grad_()
    q = vae.encode(y)
    torch.autograd.grad((q.mean + q.stddev).sum(), y)


def _plain(vae: rv.VAE, x: Tensor, start: float, spec: Spec, generator: torch.Generator) -> float:
    """The best score of one image and one restart, as one would write the attack down.

    The same attack as the batched one: sign steps that shrink to 0, the best iterate kept, a start
    within the share `start` of the ball; but no layout and no bookkeeping.
    """
    size = spec.radius
    with frozen(vae):
        with torch.no_grad():
            clean = vae.encode(x)
        noise = 2 * rand(*x.shape, like=x, generator=generator) - 1
        y, best = (x + size * start * noise).clamp(0, 1), -torch.inf
        for count in range(spec.steps + 1):
            y = y.detach().requires_grad_()
            q = vae.encode(y)
            score = symmetric_kl(q.mean, q.stddev, clean.mean, clean.stddev).sum()
            best = max(best, score.item())
            if count < spec.steps:
                (slope,) = torch.autograd.grad(score, y)
                with torch.no_grad():
                    moved = y + size * (1 - count / spec.steps) * slope.sign()
                    y = moved.clamp(x - size, x + size).clamp(0, 1)
        return best


@item(
    "bench/attacks",
    sizes={"smoke": Spec("digits-vae", "digits", 4, 1, 2, 2, 1), "laptop": Spec()},
)
def attacks(spec: Spec, run: Run) -> Result:
    """All images and restarts in one batch by the same attack one point at a time."""
    vae, images = run.model(spec.model), run.images(spec.data)
    x, _ = images.sample(spec.points, stratified=True, generator=rv.generator(run.seed))
    victim, ball = Victim(vae), Ball("linf", spec.radius)
    search = ProjectedAscent(steps=spec.steps, restarts=spec.restarts)
    together = Attack(LatentShift(), search, ball)
    starts = torch.logspace(-2, 0, spec.restarts).tolist()
    best: dict[int, float] = {}

    def one_by_one(turn: int) -> None:
        for i in ((turn * spec.slow + i) % spec.points for i in range(spec.slow)):
            g = rv.generator(1000 + i)
            best[i] = max(_plain(vae, x[i : i + 1], start, spec, g) for start in starts)

    columns: dict[str, list[float]] = {"batched": [], "point by point": [], "floor": []}
    rows_at_once = x.repeat(2, 1, 1, 1)[:100]
    passes = spec.steps * spec.restarts * spec.points / len(rows_at_once)
    found = together(victim, x, generator=rv.generator(0))
    for turn in range(spec.rounds):
        with frozen(vae), channels_last(vae):
            columns["floor"].append(passes * seconds(lambda: _floor(vae, rows_at_once)))
        again = partial(together, victim, x, generator=rv.generator(turn))
        columns["batched"].append(seconds(again))
        slow = seconds(partial(one_by_one, turn))
        columns["point by point"].append(slow * spec.points / spec.slow)
    memory = []
    for turn in range(20 if run.size != "smoke" else 2):
        short = ProjectedAscent(steps=min(5, spec.steps), restarts=spec.restarts)
        Attack(LatentShift(), short, ball)(victim, x, generator=rv.generator(turn))
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    chosen = sorted(best)
    median = {name: statistics.median(values) for name, values in columns.items()}
    rows = [Row(name, "seconds", value, n=spec.rounds) for name, value in median.items()]
    rows += [
        Row("point by point", "times batched", median["point by point"] / median["batched"]),
        Row("batched", "times floor", median["batched"] / median["floor"]),
        Row("batched", "mean score", float(found.score[chosen].mean()), n=len(chosen)),
        Row("point by point", "mean score", statistics.fmean(best.values()), n=len(chosen)),
        Row("batched", "peak MiB, first call", memory[0]),
        Row("batched", "peak MiB, last call", memory[-1]),
    ]
    return run.result(
        "A batched attack by the plain loop",
        "seconds, ratios, nats",
        rows,
        (
            f"{spec.steps} steps x {spec.restarts} restarts, {spec.points} images, symmetric KL, "
            f"linf {spec.radius:g}, one thread; the loop on {spec.slow} images a round, scaled.",
        ),
        {"seconds": columns},
    )
